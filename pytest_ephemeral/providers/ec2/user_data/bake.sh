# Install or verify, and report the result.
# This instance ends itself in any case: its shutdown behaviour is "terminate".
[ -z "$MINUTES" ] || shutdown -h "+$MINUTES" >/dev/null 2>&1
arm
PREFIX=$root$PREFIX
ARTIFACT=
work=$(mktemp -d)
umask 022
chmod 755 "$work"
mkdir -p "$PREFIX" "$work/here"

# Write a file from its URL, from a disk or from this script, and check it. Arguments: file, digest,
# URL, content, disk, size.
receive() {
    if [ -n "$3" ]; then
        curl -sSf --retry 5 -o "$1" "$3"
    elif [ -n "$5" ]; then
        head -c "$6" "$5" >"$1"
    else
        printf '%s' "$4" | base64 -d >"$1"
    fi
    echo "$2  $1" | sha256sum -c --quiet
}

installing() {
    set -e
    cd "$work/here"
    if [ -n "$ARTIFACT_NAME" ]; then
        ARTIFACT=$work/$ARTIFACT_NAME
        receive "$ARTIFACT" "$ARTIFACT_DIGEST" "$ARTIFACT_URL" "$ARTIFACT_CONTENT" \
            "$ARTIFACT_DEVICE" "$ARTIFACT_SIZE"
    fi
    if [ -n "$FILES_NAME" ]; then
        receive "$work/$FILES_NAME" "$FILES_DIGEST" "$FILES_URL" "$FILES_CONTENT" \
            "$FILES_DEVICE" "$FILES_SIZE"
        tar -xzf "$work/$FILES_NAME"
    fi
    export PREFIX ARTIFACT
    steps "$work"
}

{
    # A subshell, as "set -e" has no effect in a condition.
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
# The image must not have this script, its URLs and variables, or this instance's host keys, which
# cloud-init creates anew. cloud-init has several copies of the user data, one in obj.pkl.
for instance in "$root"/var/lib/cloud/instances/*; do
    rm -rf "$instance/scripts" "$instance/obj.pkl" "$instance"/user-data* "$instance"/cloud-config*
done
rm -f "$root"/etc/ssh/ssh_host_* "$root/tmp/pytest-ephemeral-boot"
sync
say end "$status"
