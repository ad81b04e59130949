// "Should I fine-tune at all?": the questions and where they lead, without the words.
//
// The order is that of `advise` (advise/decide.py): first what needs no training at all. Words:
// tree.<question>, tree.<question>.<answer>, end.<end>, end.<end>.why.

export type Step = { to: string; end?: never } | { end: string; to?: never }

export type Action = {
  /** The words are `end.do.<key>`. */
  key: string
  name: string
  query?: Record<string, string>
}

export const questions: Record<string, Record<string, Step>> = {
  wrong: {
    knows: { to: 'facts' },
    manner: { to: 'prompted' },
    labels: { to: 'labels' },
    preferred: { to: 'pairs' },
    heavy: { end: 'smaller' },
    unsure: { end: 'measure' },
  },
  facts: {
    table: { end: 'query' },
    often: { end: 'retrieve' },
    few: { end: 'prompt' },
    many: { to: 'alone' },
  },
  alone: { yes: { end: 'tune_facts' }, no: { end: 'retrieve' } },
  prompted: { no: { end: 'prompt_first' }, yes: { to: 'examples' } },
  examples: { yes: { end: 'tune_manner' }, no: { end: 'collect' } },
  labels: { words: { end: 'classifier' }, numbers: { end: 'formula' } },
  pairs: { yes: { end: 'tune_pairs' }, no: { end: 'collect_pairs' } },
}

const measured: Action = { key: 'measure', name: 'advise' }

export const ends: Record<string, { verdict: 'tune' | 'other' | 'first'; actions: Action[] }> = {
  smaller: { verdict: 'other', actions: [{ key: 'shrink', name: 'export' }] },
  measure: { verdict: 'first', actions: [measured, { key: 'ask', name: 'compare' }] },
  query: { verdict: 'other', actions: [measured] },
  retrieve: {
    verdict: 'other',
    actions: [{ key: 'measure', name: 'advise', query: { changes: 'often' } }],
  },
  prompt: { verdict: 'other', actions: [{ key: 'ask', name: 'compare' }, measured] },
  tune_facts: {
    verdict: 'tune',
    actions: [
      { key: 'measure', name: 'advise', query: { changes: 'rarely' } },
      { key: 'train_facts', name: 'train', query: { recipe: 'facts' } },
    ],
  },
  prompt_first: { verdict: 'first', actions: [{ key: 'ask', name: 'compare' }, measured] },
  tune_manner: {
    verdict: 'tune',
    actions: [
      { key: 'measure', name: 'advise', query: { changes: 'rarely' } },
      { key: 'train_tone', name: 'train', query: { recipe: 'tone' } },
    ],
  },
  collect: { verdict: 'first', actions: [{ key: 'data', name: 'data' }] },
  classifier: {
    verdict: 'first',
    actions: [measured, { key: 'train_labels', name: 'train', query: { recipe: 'classify' } }],
  },
  formula: { verdict: 'other', actions: [measured] },
  tune_pairs: {
    verdict: 'tune',
    actions: [{ key: 'train_pairs', name: 'train', query: { recipe: 'prefer' } }],
  },
  collect_pairs: { verdict: 'first', actions: [{ key: 'data', name: 'data' }] },
}
