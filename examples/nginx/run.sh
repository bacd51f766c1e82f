#!/usr/bin/env bash
# nginx in front of an app, with coatcheck to ask, all on loopback and from installed
# programs. Ctrl-C stops what this started.
#
# The ports are those below; COATCHECK=FILE runs that program instead of building one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

: "${PORT:=8080}"      # nginx: open this one
: "${NODE_PORT:=4180}" # coatcheck
: "${ADMIN_PORT:=4181}" # its metrics
: "${PROVIDER_PORT:=5556}"
: "${APP_PORT:=9001}"

. ../processes.sh

need nginx
for port in PORT NODE_PORT ADMIN_PORT PROVIDER_PORT APP_PORT; do
	free "$port"
done
build

# with_ports FILE: writes a copy of the file with the ports of this run.
with_ports() {
	sed -e "s|127\.0\.0\.1:8080|127.0.0.1:$PORT|" -e "s|127\.0\.0\.1:5556|127.0.0.1:$PROVIDER_PORT|" \
		-e "s|127\.0\.0\.1:4180|127.0.0.1:$NODE_PORT|" -e "s|127\.0\.0\.1:4181|127.0.0.1:$ADMIN_PORT|" \
		-e "s|127\.0\.0\.1:9001|127.0.0.1:$APP_PORT|" "$1" >"$state/$1"
}
with_ports coatcheck.yaml
with_ports nginx.conf
secret "$state/client-secret"

start provider "$coatcheck" dev-provider --listen "127.0.0.1:$PROVIDER_PORT" \
	--client-id dev --client-secret-file "$state/client-secret" \
	--redirect-uri "http://127.0.0.1:$PORT/oauth2/callback" \
	--post-logout-redirect-uri "http://127.0.0.1:$PORT/oauth2/sign_out/done"
await listens "$PROVIDER_PORT"
start app "$coatcheck" dev-app --listen "127.0.0.1:$APP_PORT" --name app
await listens "$APP_PORT"
start coatcheck "$coatcheck" serve --config "$state/coatcheck.yaml"
await ready "$NODE_PORT"
# Workers of a master that root started would be another user, who may not write here.
start nginx nginx -p "$state" -c nginx.conf -e stderr \
	-g "daemon off; pid nginx.pid; $([ "$(id -u)" != 0 ] || echo 'user root;')"
await listens "$PORT"

url=http://127.0.0.1:$PORT
cat <<EOF

  $url/            the app, for everybody who is signed in
  $url/whoami      who you are, as the app is told
  $url/public/     the app, for everybody
  $url/admin/      the app, for the group admins, in which alice is

Sign in as alice, bob or carol; the password is the name.

EOF
watch
