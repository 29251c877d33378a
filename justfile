# The verbs of daily work. Each is one command that also works without just.

# Lists the verbs.
default:
    @just --list --unsorted

# What every change must compile under: format, lints.
check:
    cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings

# All tests; installs what they need. `just test NAME` selects.
test *ARGS:
    tests/run {{ ARGS }}

# Proves that core links and runs without the standard library.
no-std:
    tests/no_std/prove

# Measures; `just bench --bench check` takes one file.
bench *ARGS:
    cargo bench -p revocast-benches {{ ARGS }}

# Simulates worlds of server, broker and devices: `just sim --seeds 1000 --from 0`.
sim *ARGS:
    cargo run --release -p revocast-tests --bin sim -- {{ ARGS }}

# Kills leader, broker and database in turn under load: `just chaos 120` for two minutes.
chaos SECONDS="120":
    tests/chaos {{ SECONDS }}

# The laws in their long form: 10^8 questions.
laws:
    REVOCAST_LAWS_LONG=1 cargo test --release -p revocast-tests --test laws -- --nocapture

# Licenses, sources and bans of the dependency tree; `just deny advisories` needs the network.
deny *WHICH="bans licenses sources":
    cargo deny --config .deny.toml check {{ WHICH }}

# Checks the bytes of the format against tests/vectors.
vectors:
    cargo test -p revocast-tests --test vectors

# A revocation on its way, from request to refusal, in one process tree.
demo *ARGS:
    cargo run --release -- demo {{ ARGS }}

# Everything CI runs, in its order.
ci:
    bash .ci/run
