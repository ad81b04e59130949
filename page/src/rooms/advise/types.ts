// What `advise --json` holds, as far as the page shows it (docs/advise.md has every key).

export type Score = { value: number; low: number; high: number }

export type Way = {
  score: Score
  form: Score | null
  seconds_per_answer: number
  prompt_tokens: number
  setup_seconds: number
  disk_bytes: number
  when_knowledge_changes: string
}

export type Advice = {
  asked: { model: string; data: string }
  rows: { train: number; held_out: number }
  metric: string
  ways: Record<string, Way>
  left_out: Record<string, string>
  verdict: {
    branch: string
    way: string
    rule: string
    why: string
    path: { node: string; answer: boolean | null; evidence: string }[]
    assumed: string[]
    remarks: string[]
  }
  next: string[]
  examples: {
    question: string
    expected: string
    ways: Record<string, { answer: string; score: number; query?: string }>
  }[]
  page: string
}

/** Branches after which a training is the thing to do. */
export const trains = ['stable', 'format', 'rag_and_tune']
