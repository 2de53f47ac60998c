# Shared by the scripts: installs what is missing and says what it does. Sourced, not run.

say() { printf '\n== %s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need COMMAND-OR-FILE PACKAGE...: installs the Debian packages if the command or file is not there.
need() {
    local probe=$1; shift
    case $probe in
        /*) [ -e "$probe" ] && return ;;
        *) command -v "$probe" >/dev/null 2>&1 && return ;;
    esac
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "error: $probe is missing; install it (Debian and Ubuntu call it: $*)" >&2
        exit 1
    fi
    say "installing $*"
    if [ -z "${APT_UPDATED:-}" ]; then as_root apt-get update -qq; APT_UPDATED=1; fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# What the bindings of MPI are made with: libclang, which nothing else on a machine may have.
need_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p | grep -q 'libclang\(-[0-9]*\)\?\.so'; then return; fi
    need /usr/lib/libclang-is-missing libclang-dev
}

# Network namespaces joined by a cable, in which two hosts of a test live: needs root and iproute2.
can_have_hosts() {
    local name=rigscale-try-$$
    ip netns add "$name" 2>/dev/null || return
    ip netns del "$name"
}

# NVRTC, which compiles the GPU's kernels and needs no GPU itself, from Python's registry into .cache.
need_nvrtc() {
    local place=$PWD/.cache/nvrtc
    if [ ! -e "$place/nvidia/cu13/lib/libnvrtc.so.13" ]; then
        need pip3 python3-pip
        say "installing NVRTC into .cache/nvrtc"
        rm -rf "$place"
        pip3 install --quiet --no-deps --target "$place" 'nvidia-cuda-nvrtc==13.0.88'
    fi
    export RIGSCALE_LIBRARY_PATH=$place/nvidia/cu13/lib
}

# Rust new enough for Cargo.toml's rust-version, by rustup where there is none.
need_rust() {
    [ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    if [ -n "$have" ] && [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]; then return; fi
    if command -v rustup >/dev/null 2>&1; then
        say "updating Rust (have ${have:-none}, need $wanted)"
        rustup toolchain install stable --profile minimal -c rustfmt -c clippy
        rustup default stable
        return
    fi
    say "installing Rust by rustup (have ${have:-none}, need $wanted)"
    need curl curl ca-certificates
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
    . "$HOME/.cargo/env"
}
