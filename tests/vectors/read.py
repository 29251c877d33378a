"""Reads the vectors without any of Revocast's code, and says whether it understands them as they say.

    read.py FOLDER

Written from the description of the format alone (docs/wire.md). Needs what tests/mint/requirements.txt
pins: cryptography for Ed25519, X25519 and ChaCha20-Poly1305, xxhash for XXH3; the rest is the standard library.
"""

import hashlib
import hmac
import json
import re
import struct
import sys
from pathlib import Path

import xxhash
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MASK = (1 << 64) - 1
KINDS = {
    1: "keys",
    2: "manifest",
    3: "index",
    4: "chunk",
    5: "delta",
    6: "report",
    7: "ask",
    8: "answer",
    9: "renew",
    10: "delivery",
    11: "issuer-keys",
}
ENTRIES_MAX = 100_000_000
ARTIFACT_BYTES_MAX = 512 * 1024 * 1024
SEALED_BYTES_MAX = 257 * 1024


class Refused(Exception):
    """Carries the name of the refusal."""


def require(condition, flag="Malformed"):
    if not condition:
        raise Refused(flag)


def wide(number):
    return f"{number:016x}"


class Body:
    """Takes fixed-size little-endian fields from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, layout):
        size = struct.calcsize("<" + layout)
        require(self.at + size <= len(self.data))
        fields = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return fields

    def rest(self):
        return self.data[self.at:]

    def skip(self, count):
        require(self.at + count <= len(self.data))
        part = self.data[self.at:self.at + count]
        self.at += count
        return part

    def end(self):
        require(self.at == len(self.data))


# ---- Fingerprints ------------------------------------------------------------------------------


def sha64(key, kind, data):
    return int.from_bytes(hashlib.sha256(key + bytes([kind]) + data).digest()[:8], "little")


def fingerprint(function, key, width, jti):
    if function == "xxh3-64":
        seed, white = struct.unpack("<QQ", key)
        hashed = xxhash.xxh3_64_intdigest(jti, seed) ^ white
    else:
        hashed = sha64(key, ord("j"), jti)
    return hashed >> (64 - width)


def read_fingerprint(vector):
    key, jti = bytes.fromhex(vector["key"]), bytes.fromhex(vector["bytes"])
    return wide(fingerprint(vector["function"], key, vector["width"], jti))


def read_scope(vector):
    if vector["kind"] == 0:
        return wide(0)
    return wide(sha64(bytes.fromhex(vector["key"]), vector["kind"], bytes.fromhex(vector["bytes"])))


# ---- Filters -----------------------------------------------------------------------------------


def splitmix(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def places(salt, blocks, probes, key):
    """The (byte, bit) places of a fingerprint: two lines, some bits in each."""
    a, b = struct.unpack("<QQ", salt)
    first, second = splitmix(a), splitmix(b)
    keys = [first, second | 1, splitmix((first + b) & MASK), splitmix((second + a) & MASK) | 1]
    for add, multiply in (keys[:2], keys[2:]):
        product = (key ^ add) * multiply
        word = (product & MASK) ^ (product >> 64)
        block = (word * blocks) >> 64
        bits = (word * 0x9E3779B97F4A7C15) & MASK
        for probe in range(probes):
            bit = (bits >> (55 - 9 * probe)) & 511
            yield block * 64 + (bit >> 3), bit & 7


def read_filter(vector):
    salt, blocks, probes = bytes.fromhex(vector["salt"]), vector["blocks"], vector["probes"]
    lines = bytearray(blocks * 64)
    for key in vector["inserted"]:
        for byte, bit in places(salt, blocks, probes, int(key, 16)):
            lines[byte] |= 1 << bit
    if bytes(lines) != bytes.fromhex(vector["bytes"]):
        return "other bytes"
    asked = (places(salt, blocks, probes, int(key, 16)) for key in vector["asked"])
    return [all(lines[byte] >> bit & 1 for byte, bit in key) for key in asked]


# ---- Lists -------------------------------------------------------------------------------------


def rice(data, count, width):
    """Decodes `count` fingerprints; gives them and how many bytes they took."""
    require(count <= ENTRIES_MAX)
    k = width - (max(count, 1) - 1).bit_length()
    require((count * (k + 1) + 7) // 8 <= len(data))
    stream, total, at, before, keys = int.from_bytes(data, "little"), len(data) * 8, 0, -1, []
    for _ in range(count):
        quotient = 0
        while True:
            require(at < total)
            one = stream >> at & 1
            at += 1
            if one:
                break
            quotient += 1
            require(quotient << k < 1 << width)
        require(at + k <= total)
        before += 1 + (quotient << k | stream >> at & ((1 << k) - 1))
        at += k
        require(before < 1 << width)
        keys.append(before)
    used = (at + 7) // 8
    require(stream >> at & ((1 << (used * 8 - at)) - 1) == 0)
    return keys, used


def read_list(vector):
    data = bytes.fromhex(vector["bytes"])
    keys, used = rice(data, vector["count"], vector["width"])
    require(used == len(data))
    return [wide(key) for key in keys]


# ---- Filter, exceptions and what came since ------------------------------------------------------


def exception_key(salt, draw, width, key):
    """What stands among the exceptions for a fingerprint."""
    a, b = struct.unpack("<QQ", salt)
    x = splitmix(a ^ splitmix((b + draw + 1) & MASK))
    product = (key ^ x) * (splitmix(x) | 1)
    return ((product & MASK) ^ (product >> 64)) >> (64 - width)


def read_exceptions(vector):
    salt, lines, data = (bytes.fromhex(vector[name]) for name in ("salt", "filter", "bytes"))
    head = Body(data)
    digest, draw, width = head.take("32sIB")
    require(1 <= width <= 64)
    keys, used = rice(head.rest(), vector["entries"], width)
    require(used == len(head.rest()))
    require(digest == hashlib.sha256(lines).digest(), "MixAndMatch")
    excepted = set(keys)
    revoked, reinstated = ({int(key, 16) for key in vector[name]} for name in ("revoked", "reinstated"))

    def answer(jti, iat):
        key = fingerprint(vector["function"], bytes.fromhex(vector["key"]), vector["width"], jti.encode())
        if key in revoked:
            return "revoked by recent"
        if key in reinstated:
            return "not-revoked by recent"
        if not all(lines[byte] >> bit & 1 for byte, bit in places(salt, vector["blocks"], vector["probes"], key)):
            return "not-revoked by filter"
        if exception_key(salt, draw, width, key) in excepted:
            return "not-revoked by exceptions"
        if iat is not None and iat < vector["covered_until"]:
            return "revoked by coverage"
        return "suspect by filter"

    return [answer(jti, iat) for jti, iat in zip(vector["asked"], vector["iats"], strict=True)]


# ---- Sealed objects ----------------------------------------------------------------------------


def ascending(items):
    return all(a < b for a, b in zip(items, items[1:]))


def scope(kind, name):
    require(kind <= 3 and (kind != 0 or name == 0))
    return kind, name


def read_keys(body):
    version, issued_at, not_after, threshold, roots, publishers, function, width, key, leeway, issuer = body.take(
        "QQQBBBBB16sIH"
    )
    require(function in (1, 2) and width in (40, 48, 64))
    require(1 <= roots <= 16 and 1 <= publishers <= 16 and 1 <= issuer <= 1024 and 1 <= threshold <= roots)
    roots = [body.take("32s")[0] for _ in range(roots)]
    publishers = [body.take("32sBQ") for _ in range(publishers)]
    issuer = body.skip(issuer)
    body.end()
    require(ascending(roots) and ascending(publishers) and all(role in (1, 2) for _, role, _ in publishers))
    try:
        issuer = issuer.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("Malformed") from None
    return {
        "version": version,
        "issued_at": issued_at,
        "not_after": not_after,
        "threshold": threshold,
        "function": {1: "xxh3-64", 2: "sha256-64"}[function],
        "width": width,
        "key": key.hex(),
        "leeway": leeway,
        "roots": [root.hex() for root in roots],
        "publishers": [[key.hex(), role, end] for key, role, end in publishers],
        "issuer": issuer,
    }


def read_manifest(body):
    term, epoch, sequence, issued_at, next_update, horizon, index, count = body.take("IQQQQQ32sH")
    require(count <= 64)
    ladder = [body.take("QQI32s") for _ in range(count)]
    body.end()
    require(all(begin < end for begin, end, _, _ in ladder))
    require(all(a[1] == b[0] for a, b in zip(ladder, ladder[1:])))
    require(not ladder or ladder[-1][1] == sequence)
    return {
        "term": term,
        "epoch": epoch,
        "sequence": sequence,
        "issued_at": issued_at,
        "next_update": next_update,
        "horizon": horizon,
        "index": index.hex(),
        "ladder": [[begin, end, size, digest.hex()] for begin, end, size, digest in ladder],
    }


def read_index(body):
    term, epoch, sequence, issued_at, horizon, covered, salt, blocks, probes, chunk_bytes, count = body.take(
        "IQQQQQ16sIBIB"
    )
    require(0 < blocks <= ARTIFACT_BYTES_MAX // 64 and blocks % 4 == 0 and 1 <= probes <= 7)
    require(2048 <= chunk_bytes <= 256 * 1024)
    artifacts = []
    for _ in range(count):
        kind, entries, size, pages = body.take("BQQI")
        require(1 <= kind <= 4 and entries <= ENTRIES_MAX and size <= ARTIFACT_BYTES_MAX)
        chunks = -(-size // chunk_bytes)
        require(pages == -(-chunks // (chunk_bytes // 32)))
        artifacts.append([kind, entries, size, [body.take("32s")[0].hex() for _ in range(pages)]])
    body.end()
    require(ascending([kind for kind, *_ in artifacts]))
    return {
        "term": term,
        "epoch": epoch,
        "sequence": sequence,
        "issued_at": issued_at,
        "horizon": horizon,
        "covered_until": covered,
        "salt": salt.hex(),
        "blocks": blocks,
        "probes": probes,
        "chunk_bytes": chunk_bytes,
        "artifacts": artifacts,
    }


def read_chunk(body):
    term, epoch, artifact, layer, number = body.take("IQBBI")
    require(1 <= artifact <= 4 and layer <= 1 and len(body.rest()) <= 256 * 1024)
    return {
        "term": term,
        "epoch": epoch,
        "artifact": artifact,
        "layer": layer,
        "number": number,
        "content": body.rest().hex(),
    }


def read_delta(body, width):
    term, begin, end, issued_at, horizon, revoked, reinstated, cutoffs, lifts = body.take("IQQQQIIHH")
    require(begin < end and cutoffs <= 4096 and lifts <= 4096)
    lists = []
    for count in (revoked, reinstated):
        keys, used = rice(body.rest(), count, width)
        body.skip(used)
        lists.append(keys)
    cutoffs = [body.take("BQQ") for _ in range(cutoffs)]
    lifts = [body.take("BQ") for _ in range(lifts)]
    body.end()
    scopes, lifted = [scope(kind, name) for kind, name, _ in cutoffs], [scope(*lift) for lift in lifts]
    require(ascending(scopes) and ascending(lifted))
    require(not set(lists[0]) & set(lists[1]) and not set(scopes) & set(lifted))
    return {
        "term": term,
        "from": begin,
        "to": end,
        "issued_at": issued_at,
        "horizon": horizon,
        "revoked": [wide(key) for key in lists[0]],
        "reinstated": [wide(key) for key in lists[1]],
        "cutoffs": [[kind, wide(name), time] for kind, name, time in cutoffs],
        "lifts": [[kind, wide(name)] for kind, name in lifts],
    }


def read_report(body):
    term, epoch, sequence, age, profile, memory, refusals, last = body.take("IQQQBQQB")
    body.end()
    return {
        "term": term,
        "epoch": epoch,
        "sequence": sequence,
        "age": None if age == MASK else age,
        "profile": profile,
        "memory_bytes": memory,
        "refusals": refusals,
        "last_refusal": None if last == 255 else last,
    }


def device_id(body, length):
    device = body.skip(length)
    body.end()
    require(re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", device))
    return device.decode()


def read_question(body, width):
    nonce, fingerprint, exp, flags, iat, sub, kid, client, length = body.take("16sQQBQQQQB")
    device = device_id(body, length)
    require(flags <= 15 and fingerprint < 1 << width)
    fields = [(iat, int), (sub, wide), (kid, wide), (client, wide)]
    require(all(flags >> bit & 1 or field == 0 for bit, (field, _) in enumerate(fields)))
    iat, sub, kid, client = [show(field) if flags >> bit & 1 else None for bit, (field, show) in enumerate(fields)]
    return {
        "device": device,
        "nonce": nonce.hex(),
        "fingerprint": wide(fingerprint),
        "exp": exp,
        "iat": iat,
        "sub": sub,
        "kid": kid,
        "client": client,
    }


def read_answer(body, width):
    nonce, fingerprint, finding, scope_kind, not_before, term, sequence, issued_at, horizon, length = body.take(
        "16sQBBQIQQQB"
    )
    device = device_id(body, length)
    require(fingerprint < 1 << width and finding <= 3 and scope_kind <= 3)
    require(finding == 2 or (scope_kind, not_before) == (0, 0))
    return {
        "device": device,
        "nonce": nonce.hex(),
        "fingerprint": wide(fingerprint),
        "finding": ["not-revoked", "token", "cutoff", "expired"][finding],
        "cutoff": [scope_kind, not_before] if finding == 2 else None,
        "term": term,
        "sequence": sequence,
        "issued_at": issued_at,
        "horizon": horizon,
    }


def text(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("Malformed") from None


def take_device(body, length):
    device = body.skip(length)
    require(re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", device))
    return device.decode()


def read_renew(body):
    counter, nonce, at, device = body.take("Q16sQB")
    require(counter > 0)
    device = take_device(body, device)
    body.end()
    return {"device": device, "counter": counter, "nonce": nonce.hex(), "at": at}


def read_delivery(body):
    issued_at, flags, nonce, device = body.take("QB16sB")
    require(flags <= 3 and (flags & 1 or nonce == bytes(16)))
    device, content = take_device(body, device), body.rest()
    require((48 if flags & 2 else 0) < len(content) <= 1 + 8192 + 48)
    return {
        "device": device,
        "issued_at": issued_at,
        "nonce": nonce.hex() if flags & 1 else None,
        "enclosed": flags & 2 != 0,
        "content": content.hex(),
    }


def read_issuer_keys(body):
    (issued_at,) = body.take("Q")
    require(1 <= len(body.rest()) <= 16 * 1024)
    return {"issued_at": issued_at, "jwks": text(body.rest())}


# ---- Envelopes (RFC 9180: base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305) -----------------------

KEM = b"KEM" + (0x0020).to_bytes(2, "big")
SUITE = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 1, 3))


def extract(suite, salt, label, secret):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")


def expand(suite, key, label, info, length):
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    # No more than one block is ever needed here.
    return hmac.digest(key, labeled + b"\1", "sha256")[:length]


def read_envelope(vector):
    seed, data = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["bytes"])
    secret = X25519PrivateKey.from_private_bytes(expand(KEM, extract(KEM, b"", b"dkp_prk", seed), b"sk", b"", 32))
    public = secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    require(public == bytes.fromhex(vector["public"]), "Key")
    require(48 <= len(data) <= 1 + 8192 + 48, "Sealed")
    sender, encrypted = data[:32], data[32:]
    try:
        shared = secret.exchange(X25519PublicKey.from_public_bytes(sender))
    except ValueError:  # all zeros
        raise Refused("Sealed") from None
    shared = expand(KEM, extract(KEM, b"", b"eae_prk", shared), b"shared_secret", sender + public, 32)
    info = b"revocast/1/delivery\0" + vector["realm"].encode() + b"\0" + vector["device"].encode()
    context = b"\0" + extract(SUITE, b"", b"psk_id_hash", b"") + extract(SUITE, b"", b"info_hash", info)
    secret = extract(SUITE, shared, b"secret", b"")
    key, nonce = expand(SUITE, secret, b"key", context, 32), expand(SUITE, secret, b"base_nonce", context, 12)
    asked = bytes(17) if vector["nonce"] is None else b"\1" + bytes.fromhex(vector["nonce"])
    try:
        plain = ChaCha20Poly1305(key).decrypt(nonce, encrypted, struct.pack("<Q", vector["issued_at"]) + asked)
    except InvalidTag:
        raise Refused("Sealed") from None
    require(len(plain) >= 1 and plain[0] in (1, 2))
    if plain[0] == 1:
        require(re.fullmatch(rb"[A-Za-z0-9._-]{1,8192}", plain[1:]))
        return {"token": plain[1:].decode()}
    require(len(plain) == 2 and 1 <= plain[1] <= 6)
    return {"refused": plain[1]}


def read_enrollment(vector):
    place = vector["realm"].encode() + b"\0" + vector["device"].encode() + b"\0"
    signing = bytes.fromhex(vector["signing"])
    message = b"revocast/1/enroll\0" + place + signing + bytes.fromhex(vector["sealing"])
    try:
        Ed25519PublicKey.from_public_bytes(signing).verify(bytes.fromhex(vector["bytes"]), message)
        return True
    except InvalidSignature:
        return False


# ---- Signatures --------------------------------------------------------------------------------


def signed_by(key, message, signatures):
    name = hashlib.sha256(key).digest()[:8]
    for claimed, signature in signatures:
        if claimed != name:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
            return True
        except (InvalidSignature, ValueError):
            continue
    return False


def read_sealed(vector):
    data = bytes.fromhex(vector["bytes"])
    require(len(data) <= SEALED_BYTES_MAX, "EndlessData")
    require(len(data) >= 6 and data[:3] == b"RVC")
    require(data[3] == 1, "Format")
    require(data[4] in KINDS)
    kind, realm_bytes, count = KINDS[data[4]], data[5], data[-1]
    require(realm_bytes <= 64 and count <= 16)
    cut = len(data) - 1 - 72 * count
    require(cut >= 6 + realm_bytes)
    realm, body = data[6:6 + realm_bytes], data[6 + realm_bytes:cut]
    require(re.fullmatch(rb"[a-z0-9-]{1,64}", realm))
    require(realm.decode() == vector["realm"], "WrongRealm")
    require(kind == vector["kind"], "Extraneous")
    pairs = [data[at:at + 72] for at in range(cut, len(data) - 1, 72)]
    signatures = [(pair[:8], pair[8:]) for pair in pairs]
    message = b"revocast/1/" + kind.encode() + b"\0" + data[:cut]
    if vector["need"]:
        have = sum(signed_by(bytes.fromhex(key), message, signatures) for key in set(vector["trusted"]))
        require(have > 0, "WrongKey")
        require(have >= vector["need"], "Threshold")
    body = Body(body)
    if kind in ("delta", "ask", "answer"):
        return {"delta": read_delta, "ask": read_question, "answer": read_answer}[kind](body, vector["width"])
    readers = {
        "keys": read_keys,
        "manifest": read_manifest,
        "index": read_index,
        "chunk": read_chunk,
        "report": read_report,
        "renew": read_renew,
        "delivery": read_delivery,
        "issuer-keys": read_issuer_keys,
    }
    return readers[kind](body)


# ---- All of them -------------------------------------------------------------------------------

FILES = {
    "fingerprints.json": read_fingerprint,
    "scopes.json": read_scope,
    "filters.json": read_filter,
    "lists.json": read_list,
    "exceptions.json": read_exceptions,
    "sealed.json": read_sealed,
    "envelopes.json": read_envelope,
    "enrollments.json": read_enrollment,
}


def main():
    folder = Path(sys.argv[1])
    read = differ = 0
    for name, reader in FILES.items():
        for vector in json.loads((folder / name).read_text(encoding="utf-8"))["vectors"]:
            try:
                found = (reader(vector), [])
            except Refused as refused:
                found = (None, [str(refused)])
            read += 1
            if found != (vector["result"], vector["flags"]):
                differ += 1
                print(f"{name} {vector['id']}: found {found}, expected {vector['result']} {vector['flags']}", file=sys.stderr)
    print(f"{read} vectors read, {differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
