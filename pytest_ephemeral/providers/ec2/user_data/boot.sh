# Boot an environment: set its timer and its variables, then start its processes.
arm
# On standby, the environment has ended and the root volume is new. Overwrite cloud-init's copies of
# the last user data, and make cloud-init run the next. One copy is this script: the shell must not
# read past this block.
if [ -n "$STANDBY" ] && [ "$(metadata tags/instance/pytest-ephemeral.state)" != used ]; then
    for instance in "$root"/var/lib/cloud/instances/*; do
        rm -f "$instance"/sem/config*scripts*user*
        for file in "$instance"/scripts/* "$instance/obj.pkl" "$instance"/user-data* \
            "$instance"/cloud-config*; do
            [ ! -f "$file" ] || shred -u "$file" 2>/dev/null || rm -f "$file"
        done
    done
    sync
    say end "its environment has ended: it is on standby"
    shutdown -h now
    exit
fi
# With an empty HOST, an application would listen on every address.
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

# Run one process; when it ends, shut the instance down.
process() {
    {
        { sh -c "$2" </dev/null 2>&1; echo "$?" >"$run/$1.status"; } | relay "$1"
        status=$(cat "$run/$1.status")
        say end "$1 exited with status $status"
        shutdown -h now
    } >/dev/null 2>&1 &
}
