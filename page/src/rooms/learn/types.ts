// What the server's room for learning tells.

export type TermEntry = {
  term: string
  title: string
  text: string
  /** How it is written in a run file. */
  more: string
  page: string
  group: string
  also: string[]
  see: string[]
}

/** Texts keep their {placeholders}: they stand for what a real error names. */
export type ErrorEntry = { code: string; what: string; do: string; page: string }

export type TabName = 'words' | 'methods' | 'objectives' | 'errors'

export function fits(search: string, ...texts: (string | null | undefined)[]): boolean {
  const text = texts.filter(Boolean).join(' ').toLowerCase()
  return search
    .trim()
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word))
}

/** The same place for `E-DATA-07`, `e-data-07` and ` E-DATA-07 `. */
export const isCode = (text: string) => /^[ew]-[a-z]+-\d+$/i.test(text.trim())
