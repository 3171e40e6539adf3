# An environment's boot: its variables, its clock, then its processes.
arm
# With none, an application would listen on every address.
[ -n "$HOST" ] || HOST=$(metadata local-ipv4)
[ -n "$HOST" ] || {
    say end "the metadata of this instance can't be read: it does not know its own address"
    shutdown -h now
    exit 1
}
STATE=${PYTEST_EPHEMERAL_HOME:-$root/var/lib/pytest-ephemeral}
mkdir -p "$STATE"
{
    printf '%s\n' "$VARIABLES"
    printf "HOST='%s'\nSTATE='%s'\nPREFIX='%s'\n" "$HOST" "$STATE" "$root$PREFIX"
    printf '%s\n' "$OVERRIDES"
} >"$run/variables"
set -a
. "$run/variables"
set +a
umask 022
cd "$STATE"

# Run one process; when it ends, the environment does.
process() {
    {
        { sh -c "$2" </dev/null 2>&1; echo "$?" >"$run/$1.status"; } | relay "$1"
        status=$(cat "$run/$1.status")
        say end "$1 exited with status $status"
        shutdown -h now
    } >/dev/null 2>&1 &
}
