// What the server's replies hold (the API under /api). Times are seconds since 1970, sizes bytes.

export type Problem = { code: string; what: string; where?: string; do?: string }

export type Health = { level: 'good' | 'warn' | 'bad'; text: string; do?: string }

export type Machine = {
  system: string
  processors: number
  memory_bytes: number
  free_memory_bytes: number
  free_disk_bytes: number
  gpus: { name: string; memory_bytes: number }[]
  python: string
  packages: Record<string, string | null>
}

export type About = {
  version: string
  language: string
  root: string
  machine: Machine
  health: Health[]
}

export type Values = Record<string, unknown>

export type Recipe = {
  id: string
  icon: string
  title: string
  text: string
  minutes: number | null
  model: string
  data: string
  method: string
  objective: string
  config: Values
  questions: string[]
  page: 'train' | 'evaluate' | 'export'
}

export type Model = {
  id: string
  label: string
  where: 'known' | 'folder' | 'cache' | 'run' | 'adapter'
  bytes: number | null
  parameters: number | null
  licence: string | null
  chat: boolean
  context: number | null
  local: boolean
}

export type DataEntry = {
  id: string
  name: string
  path: string
  rows: number | null
  format: string | null
  bytes: number
  made_at: number
  uploaded?: boolean
}

export type Repair = { key: string; text: string; count: number }

export type Inspection = {
  format: string
  detected: { format: string; why: string }[]
  columns: string[]
  rows: number
  kept: number
  dropped: number
  rows_head: Record<string, unknown>[]
  report: Record<string, unknown>
  text: string
  stops: Finding[]
  warnings: Finding[]
  repairs: Repair[]
}

export type Finding = string | { key?: string; text: string; rows?: number[]; do?: string }

export type Token = {
  text: string
  learnt: boolean
  role: string | null
  special: boolean
  id: number
}

export type Message = { role: string; content: string }

export type Preview = {
  row: number
  of: number
  messages: Message[]
  tokens: Token[]
  rendered_by: string
}

export type FieldType = 'int' | 'float' | 'bool' | 'text' | 'choice' | 'list' | 'map'

export type Field = {
  key: string
  type: FieldType
  choices?: (string | number)[]
  default: unknown
  minimum?: number
  maximum?: number
  optional: boolean
  text: string
  more: boolean
}

export type Section = { key: string; title: string; text: string; fields: Field[] }

export type Kind = {
  name: string
  title: string
  text: string
  family: string
  picture: string
  fields: Field[]
  trainable_share?: number | string | null
  peft?: boolean
  objectives?: string[]
  formats?: string[]
  rows?: string[]
  aliases?: string[]
}

export type Format = { name: string; text: string; columns?: string; rows?: string }

export type Schema = {
  sections: Section[]
  methods: Kind[]
  objectives: Kind[]
  formats: Format[]
  rewards: { name: string; text: string; fields?: Field[] }[]
}

export type Change = {
  key: string
  value: unknown
  text: string
  memory_bytes: number | null
  seconds: number | null
}

export type Plan = {
  fits: boolean
  memory_bytes: number
  available_bytes: number
  by_part: Record<string, number>
  seconds: number | null
  seconds_low: number | null
  seconds_high: number | null
  disk_bytes: number
  steps: number
  rows: number
  lines: string[]
  problems: Problem[]
  changes: Change[]
  command: string
  yaml: string
}

export type RunStatus =
  'running' | 'finished' | 'failed' | 'stopped' | 'paused' | 'interrupted' | 'empty' | 'pipeline'

export type RunHead = {
  id: string
  name: string
  path: string
  status: RunStatus
  started: number | null
  ended: number | null
  model: string | null
  data: string | null
  method: string | null
  objective: string | null
  steps: number | null
  total_steps: number | null
  loss: number | null
  held_out: number | null
  correct_before?: number | null
  correct_after?: number | null
  questions?: number | null
  tags: string[]
  note: string
  job?: string | null
}

export type BeforeAfter = {
  question: string
  before: string | null
  after: string | null
  expected?: string | null
  correct_before?: boolean | null
  correct_after?: boolean | null
}

export type Run = RunHead & {
  config: Values
  yaml: string
  summary: Record<string, unknown> | null
  decided: Record<string, unknown>
  files: { name: string; bytes: number }[]
  problems: Problem[]
  verdict: { text: string; level: 'good' | 'warn' | 'bad' } | null
  before_after: BeforeAfter[]
  has_report: boolean
  checkpoints: unknown[]
}

export type Point = [number, number]

export type Series = {
  keys: Record<string, Point[]>
  last_offset: number
  total: number
  thinned: boolean
}

export type JobKind =
  'train' | 'evaluate' | 'compare' | 'advise' | 'doctor' | 'export' | 'check' | 'bench'

export type JobState = 'queued' | 'running' | 'done' | 'failed' | 'stopped' | 'lost'

export type Job = {
  id: string
  kind: JobKind
  title: string
  state: JobState
  created: number
  started: number | null
  ended: number | null
  command: string
  run?: string | null
  result?: unknown
  log?: string
  problems: Problem[]
  progress?: {
    text: string
    done: number | null
    total: number | null
    left_seconds: number | null
  } | null
}

export type Target = {
  id: string
  label: string
  kind: 'base' | 'run' | 'adapter' | 'export'
  base?: string | null
}
