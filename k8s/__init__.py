"""What is deployed on Kubernetes, and the code that makes and checks it."""
