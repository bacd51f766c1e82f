#!/usr/bin/env bash
# Two coatcheck nodes behind HAProxy, with their sessions in Redis, all on loopback and
# from installed programs. Ctrl-C stops what this started.
#
#   ./run.sh              both nodes share keys and sessions: nobody notices which serves
#   SHARE=off ./run.sh    they share nothing: a page says that the keys differ
#   SHARE=keys ./run.sh   they share the keys alone: a page says that sessions are not shared
#
# The ports are those below; COATCHECK=FILE runs that program instead of building one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

: "${PORT:=8080}"       # HAProxy: open this one
: "${NODE_A_PORT:=4180}" # the nodes
: "${NODE_B_PORT:=4182}"
: "${ADMIN_A_PORT:=4181}" # their metrics
: "${ADMIN_B_PORT:=4183}"
: "${REDIS_PORT:=6379}"
: "${PROVIDER_PORT:=5556}"
: "${APP_1_PORT:=9001}"
: "${APP_2_PORT:=9002}"
: "${SHARE:=all}"

case $SHARE in
all | keys | off) ;;
*) echo "$0: SHARE is all, keys or off" >&2 && exit 2 ;;
esac

. ../processes.sh

need haproxy
if [ "$SHARE" = all ]; then
	need redis-server
	free REDIS_PORT
fi
for port in PORT NODE_A_PORT NODE_B_PORT ADMIN_A_PORT ADMIN_B_PORT PROVIDER_PORT APP_1_PORT APP_2_PORT; do
	free "$port"
done
build

# node NAME KEYS STORE: the node's configuration, with the ports of this run and, where
# nodes share less than they should, with other lines for keys and store.
node() {
	sed -e "s|127\.0\.0\.1:8080|127.0.0.1:$PORT|" \
		-e "s|127\.0\.0\.1:4180|127.0.0.1:$NODE_A_PORT|" -e "s|127\.0\.0\.1:4181|127.0.0.1:$ADMIN_A_PORT|" \
		-e "s|127\.0\.0\.1:4182|127.0.0.1:$NODE_B_PORT|" -e "s|127\.0\.0\.1:4183|127.0.0.1:$ADMIN_B_PORT|" \
		-e "s|127\.0\.0\.1:6379|127.0.0.1:$REDIS_PORT|" -e "s|127\.0\.0\.1:5556|127.0.0.1:$PROVIDER_PORT|" \
		-e "s|127\.0\.0\.1:9001|127.0.0.1:$APP_1_PORT|" -e "s|127\.0\.0\.1:9002|127.0.0.1:$APP_2_PORT|" \
		-e "s|keys/keys\.json|keys/$2.json|" ${3:+-e "s|^store: .*|store: {driver: sqlite, sqlite: {file: $3.db}}|"} \
		"$1.yaml" >"$state/$1.yaml"
	if [ ! -e "$state/keys/$2.json" ]; then
		"$coatcheck" key new "$state/keys/$2.json" >>"$state/keys.log" 2>&1 || die "$(cat "$state/keys.log")"
	fi
}

mkdir -p "$state/keys" "$state/redis"
secret "$state/client-secret"
case $SHARE in
all) node node-a keys "" && node node-b keys "" ;;
keys) node node-a keys a && node node-b keys b ;;
off) node node-a a a && node node-b b b ;;
esac

if [ "$SHARE" = all ]; then
	# Append-only: sessions outlive a restart of Redis.
	start redis redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --dir "$state/redis" --appendonly yes --save ""
	await listens "$REDIS_PORT"
fi
start provider "$coatcheck" dev-provider --listen "127.0.0.1:$PROVIDER_PORT" \
	--client-id dev --client-secret-file "$state/client-secret" \
	--redirect-uri "http://127.0.0.1:$PORT/oauth2/callback" \
	--post-logout-redirect-uri "http://127.0.0.1:$PORT/oauth2/sign_out/done"
await listens "$PROVIDER_PORT"
start app-1 "$coatcheck" dev-app --listen "127.0.0.1:$APP_1_PORT" --name app-1
await listens "$APP_1_PORT"
start app-2 "$coatcheck" dev-app --listen "127.0.0.1:$APP_2_PORT" --name app-2
await listens "$APP_2_PORT"
start node-a "$coatcheck" serve --config "$state/node-a.yaml"
await ready "$NODE_A_PORT"
node_a=${pids[${#pids[@]} - 1]}
start node-b "$coatcheck" serve --config "$state/node-b.yaml"
await ready "$NODE_B_PORT"
start haproxy env LISTEN="127.0.0.1:$PORT" NODE_A="127.0.0.1:$NODE_A_PORT" NODE_B="127.0.0.1:$NODE_B_PORT" \
	haproxy -db -f haproxy.cfg
await listens "$PORT"

url=http://127.0.0.1:$PORT
cat <<EOF

  $url/          app-1
  $url/two/      app-2
  $url/whoami    who you are, as app-1 is told

Sign in as alice, bob or carol; the password is the name.

EOF
case $SHARE in
all)
	cat <<EOF
Reload a few times: the answers' header X-Served-By names the node, and both serve you.
Then let a node die; you stay signed in: kill -9 $node_a

EOF
	;;
keys)
	cat <<EOF
The nodes share their keys, but each keeps its sessions to itself. Sign in and expect
a page that says so after the third sign-in that nothing came of:
"The servers of this site don't share their sessions".

EOF
	;;
off)
	cat <<EOF
The nodes share neither keys nor sessions. Sign in and expect a page that says so, since
the node that you come back to can't open what the other one sealed:
"The servers of this site don't share their keys".

EOF
	;;
esac
watch
