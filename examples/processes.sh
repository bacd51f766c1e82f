# What the run.sh of each example shares: it starts programs in the background and
# stops exactly those again, by their process id. Source it; it is no program.

state=$(mktemp -d "${TMPDIR:-/tmp}/coatcheck-example.XXXXXX")
names=()
pids=()

die() {
	printf '%s: %s\n' "$0" "$*" >&2
	exit 1
}

# need PROGRAM: it must be installed.
need() {
	PATH="$PATH:/usr/local/sbin:/usr/sbin" # where Debian keeps servers
	command -v "$1" >/dev/null || die "$1 is not installed (on Debian: apt-get install ${2:-$1})"
}

# listens PORT: something accepts connections there.
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free NAME: the port in the variable NAME must not be taken.
free() {
	if listens "${!1}"; then die "port ${!1} is taken; choose another one: $1=PORT $0"; fi
}

# ready PORT: the coatcheck node there can serve and sign in.
ready() (
	exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
	printf 'GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' >&3
	answer=$(cat <&3)
	[[ $answer == *'"ready":true'* && $answer == *'"sign_in":"ok"'* ]]
) 2>/dev/null

# start NAME COMMAND...: in the background; its output goes to a file.
start() {
	local name=$1
	shift
	"$@" >"$state/$name.log" 2>&1 </dev/null &
	names+=("$name")
	pids+=($!)
	disown # the shell is not to report how it ended; watch does
}

# await CHECK...: waits until CHECK holds for the program that was started last.
await() {
	local last=$((${#pids[@]} - 1)) tries=0
	until "$@"; do
		tries=$((tries + 1))
		if [ $tries -gt 600 ] || ! kill -0 "${pids[$last]}" 2>/dev/null; then
			tail -n 20 "$state/${names[$last]}.log" >&2
			die "${names[$last]} did not start; the end of its log is above"
		fi
		sleep 0.1
	done
}

# build: $coatcheck is the program, made from this repository unless COATCHECK names one.
build() {
	coatcheck=${COATCHECK:-$state/coatcheck}
	if [ -n "${COATCHECK:-}" ]; then
		[ -x "$coatcheck" ] || die "COATCHECK=$coatcheck is no program"
	else
		need go golang
		echo "building coatcheck ..."
		go build -o "$coatcheck" ../../cmd/coatcheck || die "the build failed"
	fi
}

# secret FILE: makes a file with a random client secret.
secret() { (umask 077 && head -c 24 /dev/urandom | base64 >"$1"); }

# stop_all ends every program that start began: all are asked at once, and one that
# does not go within ten seconds is killed.
stop_all() {
	trap '' INT TERM
	local i tries
	kill "${nap:-}" 2>/dev/null
	for i in "${!pids[@]}"; do kill "${pids[$i]}" 2>/dev/null; done
	for i in "${!pids[@]}"; do
		tries=0
		while kill -0 "${pids[$i]}" 2>/dev/null; do
			tries=$((tries + 1))
			if [ $tries -gt 100 ]; then kill -9 "${pids[$i]}" 2>/dev/null; fi
			sleep 0.1
		done
	done
	rm -rf "$state"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# watch says what runs, stays until Ctrl-C and says when one of the programs has ended.
watch() {
	local i
	for i in "${!pids[@]}"; do
		printf '  %-9s pid %-7s log %s\n' "${names[$i]}" "${pids[$i]}" "$state/${names[$i]}.log"
	done
	printf '\nCtrl-C stops everything.\n'
	while :; do
		for i in "${!pids[@]}"; do
			if ! kill -0 "${pids[$i]}" 2>/dev/null; then
				echo "${names[$i]} (pid ${pids[$i]}) has ended"
				unset "pids[$i]"
			fi
		done
		sleep 1 &
		nap=$!
		wait "$nap" # a signal ends this at once, where it would wait for a plain sleep
	done
}
