"""The TLS of the endpoint."""

from __future__ import annotations

import ssl

from enginehouse.core.errors import UserError


def open_tls(certificate: str, key: str) -> ssl.SSLContext | None:
    """Return the context of a certificate and its key, None where neither is given.

    Raises:
        UserError: `tls.incomplete`, `tls.unusable`.
    """
    if not certificate and not key:
        return None
    if not certificate or not key:
        missing = "gateway.tls_key" if certificate else "gateway.tls_certificate"
        raise UserError(
            "tls.incomplete",
            f"{missing} is not set",
            evidence=("a certificate and its key go together",),
            remedies=(f"set {missing}", "unset both to serve without TLS"),
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as problem:
        raise UserError(
            "tls.unusable",
            "the certificate and its key cannot be used",
            evidence=(f"{certificate}, {key}: {problem}",),
            remedies=("give PEM files that belong together and that you may read",),
        ) from problem
    return context
