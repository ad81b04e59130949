// A conversation with several models at once: a tree of turns. Editing a question makes a sibling of
// its turn and leaves the old branch to go back to; regenerating adds a version to an answer.

import { events, problemsOf } from '../../lib/api'
import type { Message, Problem } from '../../lib/types'
import { t } from '../../lib/words.svelte'
import type { Pick } from '../shared/targets.svelte'

export type AnswerState = 'waiting' | 'loading' | 'thinking' | 'writing' | 'done' | 'stopped' | 'problem'

export type Answer = {
  content: string
  thought: string
  state: AnswerState
  note: string
  end: string
  tokens: number
  seconds: number
  problems: Problem[]
  edited: boolean
}

export type Versions = { list: Answer[]; shown: number }

export type Turn = {
  id: number
  question: string
  /** By the id of the column. */
  answers: Record<string, Versions>
  next: Turn[]
  chosen: number
}

export type Column = { id: string; pick: Pick }

export type Settings = {
  system: string
  temperature: number
  top_p: number
  top_k: number
  max_new_tokens: number
  seed: number
  think: 'auto' | 'on' | 'off'
}

export const defaults: Settings = {
  system: '',
  temperature: 0,
  top_p: 1,
  top_k: 0,
  max_new_tokens: 256,
  seed: 0,
  think: 'auto',
}

const fresh = (): Answer => ({
  content: '',
  thought: '',
  state: 'waiting',
  note: '',
  end: '',
  tokens: 0,
  seconds: 0,
  problems: [],
  edited: false,
})

export function shownAnswer(turn: Turn, column: string): Answer | null {
  const versions = turn.answers[column]
  return versions?.list[versions.shown] ?? null
}

export class Conversation {
  root = $state<{ next: Turn[]; chosen: number }>({ next: [], chosen: 0 })
  busy = $state(false)
  private counter = 1
  private stopper: AbortController | null = null

  /** The turns of the branch that is shown. */
  get path(): Turn[] {
    const found: Turn[] = []
    let at: { next: Turn[]; chosen: number } = this.root
    for (;;) {
      const turn = at.next[at.chosen]
      if (!turn) return found
      found.push(turn)
      at = turn
    }
  }

  /** Where the siblings of a turn hang: the turn before it, or the root. */
  parentOf(turn: Turn): { next: Turn[]; chosen: number } {
    const path = this.path
    const at = path.findIndex((one) => one.id === turn.id)
    return at > 0 ? (path[at - 1] ?? this.root) : this.root
  }

  clear(): void {
    this.stop()
    this.root = { next: [], chosen: 0 }
  }

  stop(): void {
    this.stopper?.abort()
  }

  /** Put a question at the end of the branch, or beside `beside` as another branch. */
  add(question: string, beside?: Turn): Turn {
    const path = this.path
    const parent = beside ? this.parentOf(beside) : (path[path.length - 1] ?? this.root)
    parent.next.push({ id: this.counter++, question, answers: {}, next: [], chosen: 0 })
    parent.chosen = parent.next.length - 1
    return parent.next[parent.chosen] as Turn
  }

  /** Another branch with the same question in which one answer reads differently. */
  rewrite(turn: Turn, column: string, content: string): void {
    const kept = $state.snapshot(turn.answers) as Record<string, Versions>
    const made = this.add(turn.question, turn)
    for (const [id, versions] of Object.entries(kept)) {
      const answer = versions.list[versions.shown]
      if (answer) made.answers[id] = { list: [answer], shown: 0 }
    }
    const changed = { ...fresh(), content, state: 'done' as const, edited: true }
    made.answers[column] = { list: [changed], shown: 0 }
  }

  private messages(turn: Turn, column: string): Message[] {
    const found: Message[] = []
    for (const one of this.path) {
      if (one.id === turn.id) break
      const answer = shownAnswer(one, column)
      // A column that joined later has not seen what was said before.
      if (!answer || answer.state === 'problem') continue
      found.push({ role: 'user', content: one.question })
      found.push({ role: 'assistant', content: answer.content })
    }
    return [...found, { role: 'user', content: turn.question }]
  }

  /** Let columns answer a turn. Pieces appear as they come; resolves when all are done. */
  async answer(turn: Turn, columns: Column[], settings: Settings): Promise<void> {
    if (this.busy || columns.length === 0) return
    const body = {
      columns: columns.map((column) => column.pick),
      messages: columns.map((column) => this.messages(turn, column.id)),
      ...asked(settings),
    }
    const places = columns.map((column) => {
      const versions = (turn.answers[column.id] ??= { list: [], shown: 0 })
      versions.list.push(fresh())
      versions.shown = versions.list.length - 1
      return turn.answers[column.id]?.list.at(-1) as Answer
    })
    // Another version with the same seed would be the same text again.
    const version = Math.max(...columns.map((column) => turn.answers[column.id]?.shown ?? 0))
    const stopper = new AbortController()
    this.stopper = stopper
    this.busy = true
    try {
      const stream = events('/api/chat', { ...body, seed: settings.seed + version }, stopper.signal)
      for await (const { event, data } of stream) take(places, event, data as News)
      const lost = [{ code: '', what: t('compare.lost'), do: t('compare.lost.do') }]
      finish(places, 'problem', lost)
    } catch (error) {
      const problems = problemsOf(error)
      finish(places, problems.length ? 'problem' : 'stopped', problems)
    } finally {
      this.busy = false
      this.stopper = null
    }
  }

  /** For the browser's storage; answers on their way count as stopped. */
  toJSON(): unknown {
    return { root: $state.snapshot(this.root), counter: this.counter }
  }

  restore(kept: { root: { next: Turn[]; chosen: number }; counter: number }): void {
    this.root = kept.root
    this.counter = kept.counter
    const visit = (turn: Turn): void => {
      for (const versions of Object.values(turn.answers)) {
        for (const one of versions.list) {
          if (!['done', 'stopped', 'problem'].includes(one.state)) one.state = 'stopped'
        }
      }
      turn.next.forEach(visit)
    }
    this.root.next.forEach(visit)
  }
}

type News = {
  column?: number | null
  text?: string
  end?: string
  tokens?: number
  seconds?: number
  problems?: Problem[]
}

function asked(settings: Settings): Record<string, unknown> {
  const { system, think, ...rest } = settings
  const more: Record<string, unknown> = { ...rest }
  if (system.trim()) more.system = system
  if (think !== 'auto') more.think = think === 'on'
  return more
}

function take(places: Answer[], event: string, news: News): void {
  const answer = places[news.column ?? 0]
  if (!answer) return
  if (event === 'loading') {
    answer.state = 'loading'
    answer.note = news.text ?? ''
  } else if (event === 'thought') {
    answer.state = 'thinking'
    answer.thought += news.text ?? ''
  } else if (event === 'piece') {
    answer.state = 'writing'
    answer.content += news.text ?? ''
  } else if (event === 'end') {
    answer.state = 'done'
    answer.end = news.end ?? ''
    answer.tokens = news.tokens ?? 0
    answer.seconds = news.seconds ?? 0
  } else if (event === 'problem') {
    const on = news.column === undefined || news.column === null ? places : [answer]
    finish(on, 'problem', news.problems ?? [])
  }
}

function finish(places: Answer[], state: AnswerState, problems: Problem[]): void {
  for (const answer of places) {
    if (answer.state === 'done' || answer.state === 'problem') continue
    answer.state = state
    answer.problems = problems
  }
}
