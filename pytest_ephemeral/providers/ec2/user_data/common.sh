# Common to all scripts, which run in an instance as root. The settings (in capitals) are set above.
# Tests change the guest's paths by the PYTEST_EPHEMERAL_… variables.
umask 077
root=${PYTEST_EPHEMERAL_ROOT:-}
run=${PYTEST_EPHEMERAL_RUN:-/run/pytest-ephemeral}
console=${PYTEST_EPHEMERAL_CONSOLE:-/dev/console}
imds=${PYTEST_EPHEMERAL_IMDS:-http://169.254.169.254}
mkdir -p "$run"

# Read one item of the instance's metadata (IMDSv2). It may not answer right after a boot: retry.
metadata() {
    for pause in 0 ${PYTEST_EPHEMERAL_PAUSES:-1 2 4 8}; do
        sleep "$pause"
        token=$(curl -sSf -m 5 -X PUT "$imds/latest/api/token" \
            -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') || continue
        curl -sSf -m 5 -H "X-aws-ec2-metadata-token: $token" "$imds/latest/meta-data/$1" && return
    done
    return 1
}

# Replace every secret in a line by ***.
masked() {
    line=$1
    while IFS= read -r secret; do
        [ -n "$secret" ] || continue
        shown=
        while :; do
            case $line in
                *"$secret"*) shown="$shown${line%%"$secret"*}***"; line=${line#*"$secret"} ;;
                *) break ;;
            esac
        done
        line=$shown$line
    done <<END_OF_SECRETS
$SECRETS
END_OF_SECRETS
}

# Write each line of a part's output to the console, with its number, and to a file, if one is given.
relay() {
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        [ -z "$SECRETS" ] || masked "$line"
        printf 'pytest-ephemeral:%s:%d| %s\n' "$1" "$number" "$line" >>"$console"
        [ -z "${2:-}" ] || printf '%s\n' "$line" >>"$2"
    done
}

say() {
    printf 'pytest-ephemeral:%s:0| %s\n' "$1" "$2" >>"$console"
}

# Start a timer that ends the instance after the expiry in its own tag. EXPIRE is empty if something
# outside the guest does that.
arm() {
    [ -n "$EXPIRE" ] || return 0
    lib=$root/usr/local/lib/pytest-ephemeral
    units=$root/etc/systemd/system
    mkdir -p "$lib" "$units"
    printf '%s' "$EXPIRE" | base64 -d >"$lib/expire"
    chmod 755 "$lib" "$lib/expire"
    cat >"$units/pytest-ephemeral-expire.service" <<END_OF_UNIT
[Unit]
Description=End this instance when its environment has expired
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/local/lib/pytest-ephemeral/expire
END_OF_UNIT
    cat >"$units/pytest-ephemeral-expire.timer" <<END_OF_UNIT
[Unit]
Description=Look once a minute whether its environment has expired
[Timer]
OnBootSec=60
OnUnitActiveSec=60
AccuracySec=5
[Install]
WantedBy=timers.target
END_OF_UNIT
    if command -v systemctl >/dev/null && [ -z "$root" ]; then
        systemctl daemon-reload
        systemctl enable --now pytest-ephemeral-expire.timer
    fi
}
