# A bake, or the verifying of one: run what is to be run, and say how it went.
# Nobody may come back for this instance, so it ends itself: its shutdown behaviour is "terminate".
shutdown -h "+$MINUTES" >/dev/null 2>&1
arm
PREFIX=$root$PREFIX
ARTIFACT=
work=$(mktemp -d)
umask 022
chmod 755 "$work"
mkdir -p "$PREFIX"

installing() {
    set -e
    cd "$work"
    if [ -n "$ARTIFACT_NAME" ]; then
        ARTIFACT=$work/$ARTIFACT_NAME
        if [ -n "$ARTIFACT_URL" ]; then
            curl -sSf --retry 5 -o "$ARTIFACT" "$ARTIFACT_URL"
        else
            printf '%s' "$ARTIFACT_CONTENT" | base64 -d >"$ARTIFACT"
        fi
        echo "$ARTIFACT_DIGEST  $ARTIFACT" | sha256sum -c --quiet
    fi
    export PREFIX ARTIFACT
    steps "$work"
}

{
    # A shell of its own for "set -e", which would mean nothing in a condition.
    (installing) </dev/null 2>&1
    echo "$?" >"$run/status"
} | relay bake "$work/log"
status=$(cat "$run/status")
if [ -n "$RESULT_URL" ]; then
    touch "$work/log"
    { echo "$status $(wc -l <"$work/log")"; tail -c 1000000 "$work/log"; } >"$run/result"
    curl -sSf --retry 5 -T "$run/result" "$RESULT_URL"
fi
cd /
rm -rf "$work"
# This script and what it was given (URLs, variables) must not be in the image, nor what makes an
# instance this one: cloud-init makes new host keys for the next. It has the user data in several
# places, obj.pkl among them.
for instance in "$root"/var/lib/cloud/instances/*; do
    rm -rf "$instance/scripts" "$instance/obj.pkl" "$instance"/user-data* "$instance"/cloud-config*
done
rm -f "$root"/etc/ssh/ssh_host_* "$root/tmp/pytest-ephemeral-boot"
sync
say end "$status"
