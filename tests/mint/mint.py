"""Mints JSON Web Tokens with PyJWT, so that what Revocast accepts was not made by Revocast.

    mint.py --out DIR --issuer ISS --audience AUD --count N --exp UNIX

writes two files into DIR:

    jwks.json      one JWK for each algorithm, with kid, alg and use. The HS256 entry holds the secret itself
                   (kty "oct"): such a set never leaves a test.
    tokens.ndjson  N lines, the algorithms in turn: alg, kid, jti, sub, iat, exp, token

Keys, secrets and jtis are new in every run. Needs what requirements.txt pins, and nothing else.
"""

import argparse
import base64
import json
import secrets
import sys
import time
import uuid
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


def keys():
    """Makes one signing key for each algorithm: (alg, kid, what signs, JWK for who verifies)."""
    secret = secrets.token_bytes(32)
    oct_jwk = {"kty": "oct", "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode()}
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ec_key = ec.generate_private_key(ec.SECP256R1())
    ed_key = ed25519.Ed25519PrivateKey.generate()
    made = [
        ("HS256", secret, oct_jwk),
        ("RS256", rsa_key, RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True)),
        ("ES256", ec_key, ECAlgorithm(ECAlgorithm.SHA256).to_jwk(ec_key.public_key(), as_dict=True)),
        ("EdDSA", ed_key, OKPAlgorithm.to_jwk(ed_key.public_key(), as_dict=True)),
    ]
    for alg, key, jwk in made:
        kid = f"{alg.lower()}-{secrets.token_hex(4)}"
        jwk = {name: value for name, value in jwk.items() if name != "key_ops"}
        yield alg, kid, key, {**jwk, "kid": kid, "alg": alg, "use": "sig"}


def mint(alg, kid, key, options, iat, number):
    """Mints one token and tells what is in it."""
    claims = {
        "iss": options.issuer,
        "aud": options.audience,
        "sub": f"subject-{number}",
        "jti": str(uuid.uuid4()),
        "iat": iat,
        "exp": options.exp,
    }
    token = jwt.encode(claims, key, algorithm=alg, headers={"kid": kid})
    told = {name: claims[name] for name in ("jti", "sub", "iat", "exp")}
    return {"alg": alg, "kid": kid, **told, "token": token}


def write(path, text):
    """Replaces a file at once: whoever waits for it never reads half."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def main():
    parser = argparse.ArgumentParser(description="Mints JSON Web Tokens with PyJWT.")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--issuer", required=True, metavar="ISS")
    parser.add_argument("--audience", required=True, metavar="AUD")
    parser.add_argument("--count", required=True, type=int, metavar="N", help="tokens over all algorithms together")
    parser.add_argument("--exp", required=True, type=int, metavar="UNIX", help="when they all expire")
    options = parser.parse_args()
    iat = int(time.time())
    if options.count < 1:
        parser.error(f"--count is {options.count}; it must be at least 1")
    if options.exp <= iat:
        parser.error(f"--exp is {options.exp}, which is not after now ({iat})")

    signers = list(keys())
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(options.count):
        alg, kid, key, _jwk = signers[number % len(signers)]
        lines.append(json.dumps(mint(alg, kid, key, options, iat, number)))
    write(options.out / "jwks.json", json.dumps({"keys": [jwk for *_, jwk in signers]}, indent=2) + "\n")
    write(options.out / "tokens.ndjson", "".join(line + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
