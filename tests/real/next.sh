#!/usr/bin/env bash
# Builds target/next/debug/libregistry_mox.so: the next release, as it were, with a translation one higher that serves other
# bytes for the same data. For tests only; there is no setting for it.
set -euo pipefail
cd "$(dirname "$0")/../.."
next=$PWD/target/next/source
mkdir -p "$next"
cp -a Cargo.toml Cargo.lock src proto examples "$next/"
mkdir -p "$next/tests"
cp -a tests/harness "$next/tests/" # a member of the workspace
# Every target that is named in Cargo.toml must be there.
sed -nE 's/^path = "(tests|fuzz)\/(.*)\.rs"$/\1\/\2.rs/p' Cargo.toml | while read -r target; do
  mkdir -p "$next/$(dirname "$target")"
  touch "$next/$target"
done
# changed FILE EXPRESSION: an expression that finds nothing would make this the same release.
changed() {
  sed -i -E "$2" "$next/$1"
  ! cmp -s "$1" "$next/$1" || { echo "$1 is as it was" >&2; exit 1; }
}
number=$(sed -nE 's/^pub const TRANSLATION: u32 = ([0-9]+);/\1/p' src/translate.rs)
changed src/translate.rs "s/^(pub const TRANSLATION: u32 = )$number;/\1$((number + 1));/"
changed src/translate/payload.rs 's/\("app", app\), \("zone", zone/("application", app), ("zone", zone/' # a label of every endpoint
CARGO_TARGET_DIR=$PWD/target/next exec cargo build --locked --lib --manifest-path "$next/Cargo.toml"
