#!/usr/bin/env bash
# Installs what the tests need beside Go: a C compiler for the race detector, Redis,
# PostgreSQL, HAProxy, nginx, Chromium, Node.js and the npm packages of e2e/provider.
#
# On Debian and Ubuntu, as root or where sudo asks for no password, it installs what
# is missing and leaves no service running or enabled. Anywhere else it says what to
# install. It asks the network for nothing when nothing is missing, and may be run
# again at any time.
#
# What stays missing is printed. That is no failure, since the tests that need it skip
# by name, unless COATCHECK_TEST_REQUIRE=1 is set.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$PATH:/usr/local/sbin:/usr/sbin"
node_major=22 # what is installed where the system's own is too old
tools=.tools  # where it is installed; see internal/testenv

say() { printf 'setup: %s\n' "$*"; }
has() { command -v "$1" >/dev/null; }

# new_enough NODE: oidc-provider needs crypto.hash, which Node.js has since 20.12.
new_enough() {
	"$1" -e 'const [a, b] = process.versions.node.split(".").map(Number);
		process.exit(a > 20 || (a === 20 && b >= 12) ? 0 : 1)' 2>/dev/null
}
has_node() { new_enough node || new_enough "$tools/node_modules/.bin/node"; }

# Debian keeps PostgreSQL's programs, of several versions, where no PATH looks.
has_postgres() { has postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

installed() { # PROGRAM
	case $1 in
	node) has_node ;;
	postgres) has_postgres ;;
	*) has "$1" ;;
	esac
}

# as_root COMMAND...: false where that would have to ask for a password.
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n -- "$@"; fi
}

# package_of PROGRAM
package_of() {
	case $1 in
	cc) echo gcc libc6-dev ;;
	node) echo nodejs ;;
	postgres) echo postgresql ;;
	*) echo "$1" ;;
	esac
}

# no_cluster keeps Debian's package of PostgreSQL from making a database of its own, which
# would be started with the machine. It is told so before the package is there.
no_cluster() {
	local conf=/etc/postgresql-common/createcluster.conf
	if [ ! -e "$conf" ]; then
		as_root mkdir -p "${conf%/*}"
		echo 'create_main_cluster = false' | as_root tee "$conf" >/dev/null
	fi
}

# apt PACKAGE...: installs without starting or enabling any service. Debian starts a
# service when its package is installed, unless policy-rc.d forbids it.
apt() (
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'as_root rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
		as_root chmod 755 "$policy"
	fi
	case " $* " in *' postgresql '*) no_cluster ;; esac
	# --force-confold: where such a file is there already, it stays as it is.
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		-o Dpkg::Options::=--force-confold "$@" >/dev/null || return
	for package in "$@"; do
		case $package in
		redis-server | postgresql | haproxy | nginx)
			if has systemctl; then
				as_root systemctl disable --now "$package" || true
			else
				as_root update-rc.d "$package" disable || true
			fi
			;;
		esac
	done
)

wanted=(cc make redis-server postgres haproxy nginx chromium node npm)
missing=()
find_missing() {
	missing=()
	for program in "${wanted[@]}"; do
		installed "$program" || missing+=("$program")
	done
}

install_programs() {
	local packages=() program
	for program in "${missing[@]}"; do
		case $program in
		node | chromium) ;; # each is a matter of its own, below
		*) read -ra names <<<"$(package_of "$program")"; packages+=("${names[@]}") ;;
		esac
	done
	as_root apt-get update -qq || say "apt-get update failed; going on with the package lists at hand"
	local candidate
	candidate=$(apt-cache policy nodejs | sed -n 's/^ *Candidate: *//p')
	if ! has_node && dpkg --compare-versions "${candidate:-0}" ge 20.12; then
		packages+=(nodejs)
	fi
	if [ ${#packages[@]} -gt 0 ]; then
		apt "${packages[@]}" || say "apt-get install ${packages[*]} failed"
	fi
	# On Ubuntu there is no such package, only a snap.
	if ! has chromium; then
		apt chromium || say "the package chromium can't be installed here"
	fi
}

# install_node puts a current Node.js under .tools, from the npm registry: its npm
# package holds the program itself.
install_node() {
	local cpu
	case $(uname -m) in
	x86_64) cpu=x64 ;;
	aarch64) cpu=arm64 ;;
	*) say "no Node.js for $(uname -m) to install by npm"; return ;;
	esac
	npm install --no-audit --no-fund --no-save --silent --prefix "$tools" "node-linux-$cpu@$node_major" ||
		say "npm can't install Node.js $node_major"
}

find_missing
if [ ${#missing[@]} -gt 0 ] && has apt-get && as_root true 2>/dev/null; then
	say "installing: ${missing[*]}"
	install_programs
fi
if ! has_node && has npm && [ "$(uname -s)" = Linux ]; then
	say "installing Node.js $node_major in $tools"
	install_node
fi

# npm ci has run for this lock file when its copy lies beside what was installed.
stamp=e2e/provider/node_modules/.installed-lock.json
lock=e2e/provider/package-lock.json
if has npm && ! cmp -s "$lock" "$stamp"; then
	say "installing the packages of e2e/provider"
	if npm ci --prefix e2e/provider --ignore-scripts --no-audit --no-fund --silent; then
		cp "$lock" "$stamp"
	fi
fi

find_missing
cmp -s "$lock" "$stamp" || missing+=("npm packages of e2e/provider")
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
for what in "${missing[@]}"; do
	case $what in
	node) say "missing: Node.js 20.12 or newer" ;;
	npm\ *) say "missing: $what (npm ci --prefix e2e/provider)" ;;
	*) say "missing: $what (on Debian: apt-get install $(package_of "$what"))" ;;
	esac
done
say "the tests that need these skip, by name"
[ "${COATCHECK_TEST_REQUIRE:-}" != 1 ]
