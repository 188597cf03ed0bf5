"""Energy, kernel, objective and data live in one domain: refusals where they do not."""

from __future__ import annotations

from pipeline.common.errors import ConfigError
from pipeline.config.data import DataSection, FastaData, TableSection
from pipeline.config.energies import Domain, EnergySection
from pipeline.config.kernels import KernelSection
from pipeline.config.objectives import ObjectiveSection, terms_of
from pipeline.config.run import RunConfig


def check_domains(config: RunConfig) -> None:
    """Energy, kernel and data live in one domain. Raises `ConfigError` where they do not."""
    energy, data, domain = config.energy, config.data, config.energy.domain
    _check_kernel(
        config.kernel.within, energy, "kernel.inner" if config.kernel.ladder else "kernel"
    )
    if domain.levels and domain.box:
        remedy = f"energy.levels={domain.levels} is a domain already; give one of them"
        raise ConfigError("energy.box", list(domain.box), remedy)
    _check_table(config)
    if data.discrete_levels != domain.levels and not (data.by_column or domain.mixed):
        raise _other_levels(data, energy)
    if isinstance(data, FastaData):
        _check_gaps(data, config)
    if (domain.levels or domain.mixed or data.by_column) and data.noise:
        raise ConfigError(
            "data.noise", data.noise, "discrete data take no Gaussian noise; use data.noise=0"
        )
    if getattr(data, "scale", "none") != "none" and domain.levels:
        remedy = f"{energy.where}, whose levels have no scale; use none"
        raise ConfigError("data.scale", getattr(data, "scale", None), remedy)
    if domain.box is not None and domain.box[0] >= domain.box[1]:
        raise ConfigError("energy.box", list(domain.box), "must be [low, high] with low < high")
    if energy.needs_images and not data.images:
        remedy = f"convolutions need images; use energy=mlp for data={data.name}"
        raise ConfigError("energy", energy.name, remedy)


def _check_table(config: RunConfig) -> None:
    """Columns of categories are told in one way, and holes are filled where the model can."""
    data, energy = config.data, config.energy
    if not isinstance(data, TableSection):
        return
    if data.by_column and data.encoding != "real":
        remedy = f"says of all columns what data.categorical={_shown(data)} says of some; use real"
        raise ConfigError("data.encoding", data.encoding, remedy)
    if data.missing == "refuse":
        return
    if not energy.has_conditionals or energy.latents or energy.by_site:
        remedy = (
            f"energy={energy.name} has no exact law of what is missing given the rest; use"
            " energy=mixed_rbm, gaussian_rbm, rbm or potts_rbm, or fill the holes in"
        )
        raise ConfigError("data.missing", data.missing, remedy)
    if not config.kernel.within.needs_conditionals:
        remedy = "rows are filled by the run's kernel given what is there; use kernel=gibbs"
        raise ConfigError("data.missing", data.missing, remedy)
    for name, objective in terms_of(config.objective).items():
        if objective.start is None:
            remedy = f"objective={name} has no chains, as what is missing is drawn by; use pcd"
            raise ConfigError("data.missing", data.missing, remedy)
    if config.trainer.replicas > 1:
        remedy = (
            f"one learner keeps what is imputed; use trainer.replicas=1 (not"
            f" {config.trainer.replicas})"
        )
        raise ConfigError("data.missing", data.missing, remedy)


def _shown(data: TableSection) -> str:
    return "auto" if data.categorical == "auto" else f"[{','.join(data.categorical)}]"


def _check_gaps(data: FastaData, config: RunConfig) -> None:
    """Gaps that are missing letters are left out of everything."""
    if data.gaps == "ignore":
        names = {term.name for term in terms_of(config.objective).values()}
        if not config.energy.has_couplings or names != {"pseudo_likelihood"}:
            remedy = (
                "energy=potts by objective=pseudo_likelihood alone leaves missing letters out; use"
                " state"
            )
            raise ConfigError("data.gaps", "ignore", remedy)
        if any(getattr(term, "sites", None) for term in terms_of(config.objective).values()):
            raise ConfigError("data.gaps", "ignore", "needs objective.sites=null, all sites")


def _check_kernel(kernel: KernelSection, energy: EnergySection, key: str) -> None:
    """The kernel can move in the energy's domain."""
    levels = energy.domain.levels
    if energy.domain.mixed and not kernel.needs_conditionals:
        raise ConfigError(key, kernel.name, f"{energy.where}, which it does not move; use gibbs")
    remedy = "use gibbs_with_gradients or single_site" if levels else "use mala, hmc or random_walk"
    if levels and energy.has_conditionals:
        remedy = remedy.replace("use", "use gibbs,")
    if kernel.needs_conditionals and not energy.has_conditionals:
        raise ConfigError(
            key, kernel.name, f"energy={energy.name} has no conditionals; {remedy}, or energy=rbm"
        )
    if kernel.domain == ("continuous" if levels else "discrete"):
        raise ConfigError(key, kernel.name, f"{energy.where}; {remedy}")
    kernel.check(energy, key)


def _other_levels(data: DataSection, energy: EnergySection) -> ConfigError:
    """The refusal of data whose values are not the energy's."""
    levels, encoding = energy.domain.levels, getattr(data, "encoding", None)
    if isinstance(data, FastaData):
        q = data.discrete_levels
        if levels is None:
            return ConfigError("data", data.name, f"{energy.where}; use energy=potts")
        remedy = f"data.alphabet={data.alphabet} has {q} levels with data.gaps={data.gaps}; use {q}"
        return ConfigError("energy.levels", levels, remedy)
    if levels is None:
        density = f"energy={energy.name} is a density on {energy.domain}; use "
        if encoding in (None, "real"):
            return ConfigError("data", data.name, density + "energy=pairwise")
        remedy = density + "real, or energy=rbm, potts_rbm, quadratic, lattice"
        return ConfigError("data.encoding", encoding, remedy)
    if encoding is None:
        where = Domain(data.discrete_levels, None)
        remedy = f"{energy.where}, data={data.name} in {where}; use another energy"
        return ConfigError("data", data.name, remedy)
    wanted = "binary" if levels == 2 else f"categorical data.levels={levels}"
    return ConfigError("data", data.name, f"{energy.where}; set data.encoding={wanted}")


def check_domain_of(name: str, objective: ObjectiveSection, energy: EnergySection) -> None:
    """The objective is defined on the energy's domain. Raises `ConfigError` where it is not."""
    domain, where = energy.domain, energy.where
    if domain.mixed and (objective.domain != "any" or not objective.of_kinds):
        raise ConfigError("objective", name, f"{where}; use pcd, cd or maximum_likelihood")
    if objective.domain == "continuous" and domain.levels:
        raise ConfigError(
            "objective", name, f"{where}; use pcd, pseudo_likelihood, nce or conditional_nce"
        )
    if objective.domain in ("discrete", "binary") and not domain.levels:
        raise ConfigError("objective", name, f"{where}; use pcd, hutchinson, denoising or nce")
    if objective.domain == "binary" and domain.levels != 2:
        raise ConfigError("objective", name, f"{where}; use pseudo_likelihood")
    if objective.domain == "continuous or binary" and domain.levels not in (None, 2):
        raise ConfigError("objective", name, f"{where}; use pseudo_likelihood or nce")
    if domain.box is not None and not objective.in_box:
        remedy = f"{where}, and {name} needs all of R^d; use energy.box=null, or pcd or nce"
        raise ConfigError("objective", name, remedy)
