// Places an order and follows it, with fetch alone: node examples/orders.mjs
// It needs a stack, a key in ORDERSAGA_API_KEY, and a product p1 at 9.95. For Node 20 or later.
// Not for a page in a browser: everyone who opens the page could read the key.

const ORDERS = process.env.ORDERSAGA_ORDER_URL ?? 'http://127.0.0.1:3008'
const AUTHORIZATION = { Authorization: `Bearer ${process.env.ORDERSAGA_API_KEY}` }
const ATTEMPTS = 5

const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000))

class Problem extends Error {
  constructor(status, problem) {
    super(`${status} ${problem.detail ?? problem.title}`)
    Object.assign(this, { status, problem })
  }
}

/** Sends a request; again if there is no answer, or if the service says when. Only for what may be sent twice. */
async function request(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    let response
    try {
      response = await fetch(ORDERS + path, { ...options, headers: { ...AUTHORIZATION, ...options.headers } })
      if (response.ok) return response
    } catch (error) {
      if (attempt === ATTEMPTS) throw error
      await sleep(2 ** attempt / 10)
      continue
    }
    const retryAfter = response.headers.get('Retry-After')
    if (retryAfter === null || attempt === ATTEMPTS) {
      throw new Problem(response.status, await response.json().catch(() => ({ title: response.statusText })))
    }
    await sleep(Number(retryAfter))
  }
}

/** Places an order, once per key, however often the request has to be sent. */
async function place(order, key = crypto.randomUUID()) {
  const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': key }
  return (await request('/orders', { method: 'POST', headers, body: JSON.stringify(order) })).json()
}

/**
 * Yields what happens to an order until it is settled.
 *
 * In a page, EventSource does the same in three lines, without a key: use it where a proxy adds the header.
 */
async function* follow(orderId, lastEventId) {
  for (;;) {
    const headers = lastEventId === undefined ? {} : { 'Last-Event-ID': lastEventId }
    const response = await request(`/orders/${encodeURIComponent(orderId)}/events`, { headers })
    if (response.status === 204) return
    let text = ''
    try {
      for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
        const events = (text + piece).split('\n\n')
        text = events.pop()
        for (const event of events.map(parse).filter((each) => each.data !== undefined)) {
          lastEventId = event.id ?? lastEventId
          yield event
          if (event.event === 'settled') return
        }
      }
    } catch (error) {
      if (error instanceof SyntaxError) throw error // data that is not JSON
      // The connection broke: go on after the last event.
    }
    await sleep(1)
  }
}

function parse(text) {
  const event = {}
  for (const line of text.split('\n')) {
    const [, name, value] = /^(id|event|data): ?(.*)$/.exec(line) ?? []
    if (name !== undefined) event[name] = name === 'data' ? JSON.parse(value) : value
  }
  return event
}

const order = await place({
  userId: 'javascript',
  items: [{ productId: 'p1', quantity: 1, price: 9.95 }],
  totalAmount: 9.95,
  payment: { token: 'tok_ok' },
})
console.log(`placed ${order.orderNumber}`)
for await (const { event, data } of follow(order.orderId)) console.log(event, data.status ?? '')

try {
  await place({ userId: 'javascript', items: [] })
} catch (error) {
  console.log(error.status, error.problem.errors.map(({ field }) => field).join(', '))
}
