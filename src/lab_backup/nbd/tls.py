"""X.509 credentials of an NBD client, and the TLS context made of them."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab_backup.nbd.errors import NbdNegotiationError


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """The authority that must have signed the server's certificate, and the certificate that we show to the server.

    `hostname` is the name that the server's certificate must hold where it is not the one we connect to, as with a
    tunnel or a unix socket.
    """

    authority: Path
    certificate: Path | None = None
    key: Path | None = None
    hostname: str | None = None

    @classmethod
    def from_directory(cls, directory: Path, *, hostname: str | None = None) -> Self:
        """Return the credentials in `directory`, named as QEMU and libvirt name them (`ca-cert.pem`, `client-*.pem`).

        The client's certificate is optional there; whether the server insists on one is the server's affair.
        """
        certificate = directory / "client-cert.pem"
        shown = certificate.exists()
        return cls(
            authority=directory / "ca-cert.pem",
            certificate=certificate if shown else None,
            key=directory / "client-key.pem" if shown else None,
            hostname=hostname,
        )

    def context(self) -> ssl.SSLContext:
        """Return a context that checks the server's chain and name and speaks TLS 1.2 or newer.

        Raises NbdNegotiationError where a file is missing, unreadable, encrypted or no PEM.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cafile=self.authority)
        except (OSError, ValueError) as error:
            raise _unusable("TLS authority", self.authority, error) from error
        if self.certificate is not None:
            try:
                # an encrypted key must fail instead of asking on the terminal
                context.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ValueError) as error:
                raise _unusable("TLS client certificate or its key", self.certificate, error) from error
        return context


def _unusable(what: str, path: Path, error: Exception) -> NbdNegotiationError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return NbdNegotiationError(
        f"{what} {path} cannot be used: {reason}",
        hint="name readable PEM files; a private key must not be encrypted",
    )
