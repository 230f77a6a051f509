"""A certificate that is made on the fly, for browsers that want TLS."""

import dataclasses
import datetime
import ipaddress
import os
import pathlib

DAYS = 7


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for one address, and its private key, in files.

    Attributes:
        path: the certificate (PEM).
        key_path: the private key (PEM), which only the owner may read.
        fingerprint: the SHA-256 of the certificate, as browsers show it.
    """

    path: pathlib.Path
    key_path: pathlib.Path
    fingerprint: str

    @classmethod
    def make(cls, directory: pathlib.Path, host: str) -> "Certificate":
        """Make one that is good for some days.

        Args:
            directory: where the two files go.
            host: the IPv4 address that it is for.
        """
        # They come with Synapse, and whoever imports us may have to say first that it is missing.
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "synapse_rendezvous demonstration")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))  # the phone's clock may be slow
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address(host))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        path, key_path = directory / "certificate.pem", directory / "private_key.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        return cls(path, key_path, certificate.fingerprint(hashes.SHA256()).hex(":").upper())
