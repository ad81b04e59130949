// Requests to the server. Whatever goes wrong arrives as `Problems`: a list of what happened, where
// and what to do, ready for the `Problems` part. Nothing else is thrown but the AbortError of a
// request that the page itself gave up.

import type { Problem } from './types'
import { lang, t } from './words.svelte'

export class Problems extends Error {
  override name = 'Problems'
  constructor(
    readonly problems: Problem[],
    readonly status: number,
    readonly body: Record<string, unknown> = {},
  ) {
    super(problems.map((one) => `${one.code} ${one.what}`).join('; '))
  }
}

/** Any caught value as a list of problems, for `catch (e) { problems = problemsOf(e) }`. */
export function problemsOf(error: unknown): Problem[] {
  if (error instanceof Problems) return error.problems
  if (error instanceof DOMException && error.name === 'AbortError') return []
  const text = error instanceof Error ? error.message : String(error)
  return [{ code: '', what: t('net.page_fault', { text }), do: t('net.page_fault.do') }]
}

type Options = { signal?: AbortSignal; headers?: Record<string, string> }

function headers(more: Record<string, string> = {}): Record<string, string> {
  return { Accept: 'application/json', 'X-Language': lang.code, ...more }
}

async function refused(reply: Response): Promise<Problems> {
  let body: Record<string, unknown> = {}
  try {
    body = await reply.json()
  } catch {
    body = {}
  }
  if (Array.isArray(body.problems)) {
    return new Problems(body.problems as Problem[], reply.status, body)
  }
  if (reply.status === 401) {
    return new Problems([{ code: '', what: t('net.token'), do: t('net.token.do') }], 401)
  }
  const what = t('net.status', { status: String(reply.status) })
  return new Problems([{ code: '', what, do: t('net.status.do') }], reply.status, body)
}

/** A request whose reply is read by the caller (streams, files); refusals are thrown. */
export async function request(
  method: string,
  path: string,
  body?: BodyInit | null,
  options: Options = {},
): Promise<Response> {
  let reply: Response
  try {
    reply = await fetch(path, {
      method,
      body: body ?? null,
      headers: headers(options.headers),
      signal: options.signal ?? null,
      credentials: 'same-origin',
    })
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new Problems([{ code: '', what: t('net.away'), do: t('net.away.do') }], 0)
  }
  if (!reply.ok) throw await refused(reply)
  return reply
}

async function json<T>(method: string, path: string, body: unknown, options: Options): Promise<T> {
  const sent = method === 'GET' ? null : JSON.stringify(body ?? {})
  const kind: Record<string, string> = sent === null ? {} : { 'Content-Type': 'application/json' }
  const reply = await request(method, path, sent, {
    ...options,
    headers: { ...kind, ...options.headers },
  })
  const text = await reply.text()
  return (text ? JSON.parse(text) : null) as T
}

export function get<T>(path: string, options: Options = {}): Promise<T> {
  return json<T>('GET', path, null, options)
}

export function post<T>(path: string, body: unknown = {}, options: Options = {}): Promise<T> {
  return json<T>('POST', path, body, options)
}

export function patch<T>(path: string, body: unknown, options: Options = {}): Promise<T> {
  return json<T>('PATCH', path, body, options)
}

export function del<T>(path: string, options: Options = {}): Promise<T> {
  return json<T>('DELETE', path, {}, options)
}

/** Send a file as it is. `onprogress` gets a share from 0 to 1. */
export function upload<T>(
  path: string,
  file: Blob,
  onprogress: (share: number) => void = () => {},
): Promise<T> {
  // fetch cannot tell how much was sent; XMLHttpRequest can.
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest()
    call.open('POST', path)
    for (const [name, value] of Object.entries(headers())) call.setRequestHeader(name, value)
    call.setRequestHeader('Content-Type', 'application/octet-stream')
    call.upload.onprogress = (event) => {
      if (event.lengthComputable && event.total > 0) onprogress(event.loaded / event.total)
    }
    call.onerror = () =>
      reject(new Problems([{ code: '', what: t('net.away'), do: t('net.away.do') }], 0))
    call.onload = async () => {
      const reply = new Response(call.responseText, { status: call.status })
      if (reply.ok) resolve(JSON.parse(call.responseText) as T)
      else reject(await refused(reply))
    }
    call.send(file)
  })
}

/** Events of a reply that streams (`event:` and `data:` lines), for the chat's POST. */
export async function* events(
  path: string,
  body: unknown,
  signal: AbortSignal,
): AsyncGenerator<{ event: string; data: unknown }> {
  const reply = await request('POST', path, JSON.stringify(body), {
    signal,
    headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
  })
  if (!reply.body) return
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    held += value.replaceAll('\r\n', '\n')
    let end = held.indexOf('\n\n')
    while (end >= 0) {
      const read = parseEvent(held.slice(0, end))
      held = held.slice(end + 2)
      if (read) yield read
      end = held.indexOf('\n\n')
    }
  }
}

function parseEvent(block: string): { event: string; data: unknown } | null {
  let event = 'message'
  const data: string[] = []
  for (const line of block.split('\n')) {
    if (line.startsWith('event:')) event = line.slice(6).trim()
    else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''))
  }
  return data.length === 0 ? null : { event, data: JSON.parse(data.join('\n')) }
}
