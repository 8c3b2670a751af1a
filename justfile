# A menu of commands. Each recipe also works without just; `just` lists them.

# List the recipes
default:
    @just --list --unsorted

# Serve on 127.0.0.1:50051, store in ./data
serve *options:
    cargo run --release -- serve {{options}}

# Compile everything, quickly
check:
    cargo check --workspace --all-targets

# Run before a commit
lint:
    cargo fmt
    cargo clippy --workspace --all-targets -- -D warnings

# All tests, or those whose name contains a word
test *words:
    cargo test {{words}}

# The whole gate: some 25 minutes
gate:
    .ci/run

# Licences, sources and duplicates of dependencies
deny:
    .ci/deny

# Benchmark the parts
bench-parts:
    cargo bench

# Benchmark the server and the installed peers
bench *options:
    cargo build --release --bin oncelog
    cargo run --release --package oncelog-bench -- {{options}}

# Simulate crashes and failing disks for this many seeds
simulate seeds="10000":
    cargo run --release --package oncelog-torture -- simulate --seeds {{seeds}}

# Kill, starve and damage the real program
crash rounds="60":
    cargo build --release --bin oncelog
    cargo run --release --package oncelog-torture -- crash --rounds {{rounds}}

# Attack the port of the real program
attack *options:
    cargo build --release --bin oncelog
    cargo run --release --package oncelog-torture -- network {{options}}

# Fuzz each target for this many seconds, on a nightly toolchain
fuzz seconds="60":
    .ci/fuzz {{seconds}}

# The tests with AddressSanitizer, on a nightly toolchain
asan:
    .ci/asan

# Build the image
image:
    docker build --tag oncelog .
