"""The site certificate: self-signed, for the tablet's HTTPS until a CA of the site's own comes."""

import datetime as dt
import ipaddress
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgepacs.store.files import write_private

_VALID = dt.timedelta(days=825)  # the longest that tablets accept of a leaf


def create(folder: Path) -> None:
    """Write `site.key` and `site.crt` for this machine's names and addresses."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    names = _names()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # the box's clock may be behind
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(folder / "site.key", private)
    write_private(folder / "site.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _names() -> list[str]:
    """The host's names, then its addresses."""
    host = socket.gethostname() or "edgepacs"
    names = [host, f"{host}.local", "localhost", "127.0.0.1", "::1"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # a host without a resolvable name still has its loopback names
        found = []
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    return names + sorted(addresses - set(names))


def site_names(folder: Path) -> frozenset[str]:
    """The DNS names of `site.crt`, in lower case, whoever made it; none where there is none."""
    try:
        found = x509.load_pem_x509_certificate((folder / "site.crt").read_bytes())
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return frozenset()
    return frozenset(name.lower() for name in alternatives.value.get_values_for_type(x509.DNSName))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
