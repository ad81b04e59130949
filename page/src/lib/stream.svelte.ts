// The one EventSource of this tab. A browser allows six connections to a host, so all live news
// (jobs, run heads, and the events and log of at most one run) comes over one.
//
// The browser itself reconnects with Last-Event-ID; after an answer that it takes as final (the
// server restarting may give one) the stream is opened again here with `from` set to the last id.

import type { Job, RunHead } from './types'
import { lang } from './words.svelte'

export type RunEvent = { event: string; time: number; step?: number; [key: string]: unknown }

type Handlers = {
  job: (job: Job) => void
  run: (run: RunHead) => void
  event: (event: RunEvent) => void
  log: (piece: { text: string }) => void
  hello: (hello: Record<string, unknown>) => void
}
type Name = keyof Handlers

const heard: { [K in Name]: Set<Handlers[K]> } = {
  job: new Set(),
  run: new Set(),
  event: new Set(),
  log: new Set(),
  hello: new Set(),
}
const names: Name[] = ['job', 'run', 'event', 'log', 'hello']

let source: EventSource | null = null
let following: string | null = null
let lastId = ''
let wait = 500
let timer: ReturnType<typeof setTimeout> | undefined
let connected = $state<'connecting' | 'open' | 'lost'>('connecting')

export const stream = {
  /** 'lost' while the server cannot be reached; the page goes on trying. */
  get state(): 'connecting' | 'open' | 'lost' {
    return connected
  },
}

function open(): void {
  clearTimeout(timer)
  source?.close()
  const query = new URLSearchParams({ language: lang.code })
  if (following) query.set('run', following)
  if (following && lastId) query.set('from', lastId)
  const opened = new EventSource(`/api/stream?${query}`)
  source = opened
  opened.onopen = () => {
    connected = 'open'
    wait = 500
  }
  opened.onerror = () => {
    if (source !== opened) return
    connected = 'lost'
    if (opened.readyState !== EventSource.CLOSED) return
    timer = setTimeout(open, wait)
    wait = Math.min(wait * 2, 8000)
  }
  for (const name of names) {
    opened.addEventListener(name, (message) => {
      if (source !== opened) return
      const { data, lastEventId } = message as MessageEvent<string>
      if (lastEventId) lastId = lastEventId
      const value = JSON.parse(data)
      for (const handler of heard[name]) (handler as (value: unknown) => void)(value)
    })
  }
}

/** Texts of jobs and heads come in the page's language: tell them again after it changed. */
export function tellAgain(): void {
  if (source) open()
}

/** Hear one kind of news; returns what stops it. */
export function hear<K extends Name>(name: K, handler: Handlers[K]): () => void {
  heard[name].add(handler)
  if (!source) open()
  return () => heard[name].delete(handler)
}

/** Follow the events and the log of a run from byte offsets on (of `series` and of `log`). */
export function follow(run: string, eventsOffset: number, logOffset: number): () => void {
  following = run
  lastId = `${eventsOffset}.${logOffset}`
  open()
  return () => {
    if (following !== run) return
    following = null
    lastId = ''
    open()
  }
}
