"""The manifests for Kubernetes, and the code that makes and checks them."""
