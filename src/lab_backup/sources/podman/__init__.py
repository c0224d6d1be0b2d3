"""Podman containers, pods and volumes, through the REST API of the service. The only package that knows podman-py."""
