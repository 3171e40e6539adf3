#!/bin/sh
# End this instance (its shutdown behaviour is "terminate") if its expiry has passed. If the expiry
# can't be read, or is "never", do nothing.
imds=${PYTEST_EPHEMERAL_IMDS:-http://169.254.169.254}
token=$(curl -sSf -m 5 -X PUT "$imds/latest/api/token" \
    -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') || exit 0
expires=$(curl -sSf -m 5 -H "X-aws-ec2-metadata-token: $token" \
    "$imds/latest/meta-data/tags/instance/pytest-ephemeral.expires-at") || exit 0
case $expires in
    [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]+00:00) ;;
    *) exit 0 ;;
esac
now=$(date -u +%Y-%m-%dT%H:%M:%S+00:00)
first=$(printf '%s\n%s\n' "$expires" "$now" | LC_ALL=C sort | head -n 1)
[ "$first" = "$expires" ] || exit 0
echo "pytest-ephemeral: this environment expired at $expires" \
    >>"${PYTEST_EPHEMERAL_CONSOLE:-/dev/console}"
shutdown -h now
