#!/bin/sh
# The life of an order with curl alone. It needs a stack, a key, and a product p1 at 9.95:
#   export ORDERSAGA_API_KEY=$(ordersaga keys create --role client --owner shop)
set -eu

orders=${ORDERSAGA_ORDER_URL:-http://127.0.0.1:3008}
run=$(date +%s)-$$

say() { printf '\n# %s\n' "$*"; }
ask() { curl --silent --show-error --oauth2-bearer "$ORDERSAGA_API_KEY" "$@"; echo; }
# A value of an answer that is JSON; programs read it with a library, or with jq.
field() { sed -E "s/.*\"$1\":\"?([^\",}]*).*/\1/"; }

# An order over HTTP: its key, and the card's token.
place() {
    ask "$orders/orders" --header "Idempotency-Key: $1" --header 'Prefer: wait=10' \
        --header 'Content-Type: application/json' --data '
        {"userId": "curl", "items": [{"productId": "p1", "quantity": 2, "price": 9.95}], "totalAmount": 19.9,
         "payment": {"token": "'"$2"'"}}'
}

say 'Who is this key?'
ask "$orders/me"

say 'Place an order, and wait up to 10 seconds for its end'
order=$(place "cart-$run" tok_ok | field orderId)
ask "$orders/orders/$order"

say 'Did the answer get lost? The same key and body are the same order'
test "$(place "cart-$run" tok_ok | field orderId)" = "$order" && echo "still $order"

say 'What happened to it, event by event, until it is settled'
ask --no-buffer --max-time 60 "$orders/orders/$order/events"

say 'A card that is declined: the code is for programs, the reason for people'
declined=$(place "declined-$run" tok_declined | field orderId)
ask --no-buffer --max-time 60 "$orders/orders/$declined/events" >/dev/null  # ends when the order is settled
ask "$orders/orders/$declined" | field failureReason

say 'An order that is wrong: 422, and which fields are'
ask --write-out '\n%{http_code}' "$orders/orders" --header 'Content-Type: application/json' --data '{"userId": "curl"}'

say 'The orders of this customer that were cancelled, newest first'
ask "$orders/orders?userId=curl&status=CANCELLED&limit=3"

say 'Too late to cancel: 409, and why'
ask --write-out '\n%{http_code}' --request POST "$orders/orders/$order/cancel"
