"""X.509 certificates for tests, made by GnuTLS's certtool, in the files that QEMU and libvirt expect."""

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of its own."""

    def __init__(self, directory: Path, name: str = "Test authority", *, key_type: str = "ecdsa") -> None:
        """Make the authority in `directory`, with keys of `key_type`: libvirt itself wants `rsa`."""
        self._key_type = key_type
        self.directory = directory
        directory.mkdir()
        self.certificate = directory / "ca-cert.pem"
        self._key = directory / "ca-key.pem"
        _make_key(self._key, key_type)
        template = directory / "ca.template"
        template.write_text(f'cn = "{name}"\nca\ncert_signing_key\nexpiration_days = 30\n')
        certtool("--generate-self-signed", template, self.certificate, "--load-privkey", str(self._key))

    def server(self, directory: Path, *, dns: str = "localhost", ip: str = "127.0.0.1") -> Path:
        """Make a server's files in `directory` and return it."""
        return self._issue(directory, "server", f'dns_name = "{dns}"\nip_address = "{ip}"\ntls_www_server\n')

    def client(self, directory: Path) -> Path:
        """Make a client's files in `directory` and return it."""
        return self._issue(directory, "client", "tls_www_client\n")

    def _issue(self, directory: Path, role: str, purpose: str) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        key, template = directory / f"{role}-key.pem", directory / f"{role}.template"
        _make_key(key, self._key_type)
        template.write_text(f'cn = "{role}"\n{purpose}signing_key\nencryption_key\nexpiration_days = 30\n')
        signer = ["--load-ca-certificate", str(self.certificate), "--load-ca-privkey", str(self._key)]
        certificate = directory / f"{role}-cert.pem"
        certtool("--generate-certificate", template, certificate, "--load-privkey", str(key), *signer)
        return directory


def certtool(action: str, template: Path, outfile: Path, *arguments: str) -> None:
    """Run certtool quietly."""
    command = ["certtool", action, "--template", str(template), "--outfile", str(outfile), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _make_key(path: Path, key_type: str) -> None:
    command = ["certtool", "--generate-privkey", f"--key-type={key_type}", "--outfile", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
