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

export type Finding = {
  key?: string
  name?: string
  severity?: 'stop' | 'warn' | 'info'
  what: string
  do?: string
  count?: number
  total?: number
  places?: string[]
  fields?: Record<string, unknown>
}

export type Inspection = {
  format: string | null
  detected: { format: string; why: string }[]
  columns: string[]
  rows: number
  kept: number
  dropped: number
  rows_head: unknown[]
  report: (Record<string, unknown> & { kinds?: Record<string, unknown> }) | null
  text: string
  stops: Finding[]
  warnings: Finding[]
  repairs: Repair[]
  repair_stops?: Problem[]
}

export type Token = {
  text: string
  learnt: boolean
  weight?: number
  role: string | null
  special: boolean
  id: number
}

export type Branch = { role: string; length: number; learnt: number; tokens: Token[] }

export type Message = { role: string; content: string }

export type Preview = {
  row: number
  of: number
  kind?: string
  origin?: string
  messages: Message[]
  tokens: Token[]
  branches?: Branch[]
  rendered_by: string | null
  unused_columns?: string[]
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
  paused?: boolean
  job?: string | null
  /** Told by the stream when the run was moved to the trash. */
  gone?: boolean
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

/** A step and a value; null where the value was no finite number. */
export type Point = [number, number | null]

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
  /** Told by the stream when the job was removed. */
  gone?: boolean
}

export type Target = {
  id: string
  label: string
  kind: 'base' | 'run' | 'adapter' | 'export'
  base?: string | null
}
