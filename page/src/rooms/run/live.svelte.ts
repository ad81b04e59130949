// A run as it goes on: its curves, its events and its log, first as they are on disk, then from the
// stream, which goes on at the byte where the first reading ended.

import { get, problemsOf, request } from '../../lib/api'
import { figuresOf, put } from '../../lib/curves'
import { follow, hear, type RunEvent } from '../../lib/stream.svelte'
import type { Point, Problem, Run, Series } from '../../lib/types'

const MOST_LOG = 400_000
const FLUSH_MS = 200

export class Live {
  run = $state.raw<Run | null>(null)
  keys = $state.raw<Record<string, Point[]>>({})
  thinned = $state(false)
  log = $state('')
  /** Everything but steps, oldest first. */
  events = $state.raw<RunEvent[]>([])
  problems = $state.raw<Problem[]>([])
  gone = $state(false)

  #id: string
  #waiting: RunEvent[] = []
  #timer: ReturnType<typeof setTimeout> | undefined
  #stops: (() => void)[] = []
  #ended = false

  constructor(id: string) {
    this.#id = id
  }

  #path(rest = ''): string {
    return `/api/runs/${encodeURIComponent(this.#id)}${rest}`
  }

  /** Read what there is and follow what comes; the result ends it. */
  start(): () => void {
    this.#stops.push(
      hear('run', (head) => {
        if (head.id !== this.#id) return
        if (head.gone) this.gone = true
        else if (this.run) this.#headChanged({ ...this.run, ...head })
        else void this.refresh()
      }),
      hear('event', (event) => this.#heard(event)),
      hear('log', (piece) => (this.log = (this.log + piece.text).slice(-MOST_LOG))),
    )
    void this.#open()
    return () => {
      this.#ended = true
      clearTimeout(this.#timer)
      for (const stop of this.#stops) stop()
    }
  }

  async #open(): Promise<void> {
    try {
      const [series, log] = await Promise.all([
        get<Series>(this.#path('/series')),
        get<{ text: string; offset: number }>(this.#path('/log')),
        this.refresh(),
      ])
      if (this.#ended) return
      this.keys = series.keys
      this.thinned = series.thinned
      this.log = log.text.slice(-MOST_LOG)
      this.#stops.push(follow(this.#id, series.last_offset, log.offset))
      await this.#pastEvents(series.last_offset)
    } catch (error) {
      this.problems = problemsOf(error)
    }
  }

  /** Read the head and all that goes with it again. */
  async refresh(): Promise<void> {
    try {
      const run = await get<Run>(this.#path())
      if (this.#ended) return
      this.run = run
      this.problems = []
    } catch (error) {
      this.problems = problemsOf(error)
    }
  }

  #headChanged(next: Run): void {
    const before = this.run?.status
    this.run = next
    // Verdict, answers and files come with the end.
    if (before !== next.status) void this.refresh()
  }

  /** The events before the stream's start. Steps are in the curves already, so only the others. */
  async #pastEvents(until: number): Promise<void> {
    if (until === 0 || !this.run?.files.some((file) => file.name === 'events.jsonl')) return
    const reply = await request('GET', this.#path('/file?name=events.jsonl'))
    const bytes = (await reply.arrayBuffer()).slice(0, until)
    const found: RunEvent[] = []
    for (const line of new TextDecoder().decode(bytes).split('\n')) {
      if (!line || line.startsWith('{"event": "step"')) continue
      try {
        const event = JSON.parse(line) as RunEvent
        if (event.event !== 'step') found.push(event)
      } catch {
        // A line that was cut when the machine went down; what follows it is whole.
      }
    }
    if (!this.#ended) this.events = [...found, ...this.events]
  }

  #heard(event: RunEvent): void {
    this.#waiting.push(event)
    // Many steps a second become few redraws.
    this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS)
  }

  #flush(): void {
    this.#timer = undefined
    const heard = this.#waiting
    this.#waiting = []
    const keys = { ...this.keys }
    const touched = new Set<string>()
    for (const event of heard) {
      for (const [key, value] of Object.entries(figuresOf(event))) {
        if (!touched.has(key)) keys[key] = [...(keys[key] ?? [])]
        touched.add(key)
        put(keys[key]!, event.step ?? 0, value)
      }
    }
    this.keys = keys
    const others = heard.filter((event) => event.event !== 'step')
    if (others.length > 0) this.events = [...this.events, ...others]
    // A fresh total of steps, and answers of the questions, stand in the run's files.
    if (others.some((event) => ['started', 'finished'].includes(event.event))) void this.refresh()
  }

  get step(): number {
    return Math.max(this.keys.loss?.at(-1)?.[0] ?? 0, this.run?.steps ?? 0)
  }

  /** Seconds until the last step, from the pace of the latest steps; null before there is one. */
  get secondsLeft(): number | null {
    const total = this.run?.total_steps
    const latest = (this.keys.seconds ?? []).slice(-20).flatMap(([, value]) => value ?? [])
    if (!total || latest.length < 2) return null
    const pace = latest.reduce((sum, value) => sum + value, 0) / latest.length
    return Math.max(0, total - this.step) * pace
  }
}
