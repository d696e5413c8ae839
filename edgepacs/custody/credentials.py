"""Who we are to a peer, and whom we take it for: TLS contexts and user identity."""

import os
import ssl
from typing import Protocol

from edgepacs.dimse.items import UserIdentity
from edgepacs.errors import NotAdmitted
from edgepacs.store.destinations import Destination

_NAME, _NAME_AND_PASSCODE = 1, 2  # kinds of user identity (PS3.7 D.3.3.7)


class Called(Protocol):
    """Whoever may be called by TLS: a destination, or an AE title; all three are PEM, or ''."""

    @property
    def authority(self) -> str:
        """Whom we believe that it is the peer; '' for whom this machine trusts."""

    @property
    def certificate(self) -> str:
        """What we show it."""

    @property
    def private_key(self) -> str:
        """The key of that."""


def tls_context(peer: Called) -> ssl.SSLContext:
    """TLS 1.2 or better, as the profiles of PS3.15 B.9 and B.10 demand.

    The certificate of the peer must be signed by `authority` (else by one the system trusts) and
    name its host. Raises NotAdmitted where what is set cannot be used.
    """
    authority = peer.authority
    try:
        context = ssl.create_default_context(cadata=authority or None)
    except (ssl.SSLError, ValueError) as error:
        raise NotAdmitted("the authority set for the peer is no certificate") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority:
        # A site's own certificate may be trusted itself, and is seldom made to the letter.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if peer.certificate:
        _show(context, f"{peer.certificate}\n{peer.private_key}\n")
    return context


def _show(context: ssl.SSLContext, chain: str) -> None:
    """Show a certificate to the peer; OpenSSL takes it from a file, which is on no disk here."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, chain.encode())
        # A key under a passphrase would be asked for on a terminal nobody sees.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    except (OSError, ValueError) as error:
        words = "certificate and private_key set for the peer cannot be used together"
        raise NotAdmitted(words) from error
    finally:
        os.close(descriptor)


def user_identity(destination: Destination) -> UserIdentity | None:
    """What is said of our user when associating (PS3.7 D.3.3.7); None where nothing is set."""
    if not destination.user_name:
        return None
    return UserIdentity(
        kind=_NAME_AND_PASSCODE if destination.passcode else _NAME,
        primary=destination.user_name.encode(),
        secondary=destination.passcode.encode(),
    )
