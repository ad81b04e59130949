// The page's words in the language chosen. `t` is reactive: text on the screen changes at once.
//
// Keys are flat (`train.start`), one pack of files a language, fetched when the language is first
// chosen. `{name}` in a text is replaced. A text that counts may have a twin `key.one` in English.

type Pack = Record<string, string>
export type Language = 'en' | 'zh'

const packs: Record<Language, () => Promise<{ default: Pack }>> = {
  en: () => import('../locales/en'),
  zh: () => import('../locales/zh'),
}
const KEPT = 'tunewright.language'

let pack = $state.raw<Pack>({})
let code = $state<Language>('en')

export const lang = {
  /** 'en' or 'zh'. */
  get code(): Language {
    return code
  },
  /** What Intl is given. */
  get locale(): string {
    return code === 'zh' ? 'zh-CN' : 'en-GB'
  },
}

/** The text of a key, with its {placeholders} filled in. */
export function t(key: string, values: Record<string, string | number> = {}): string {
  let text = pack[key]
  if (typeof values.count === 'number' && code === 'en' && values.count === 1) {
    text = pack[`${key}.one`] ?? text
  }
  if (text === undefined) return key
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => {
    const value = values[name]
    if (value === undefined) return whole
    return typeof value === 'number' ? value.toLocaleString(lang.locale) : value
  })
}

/** Whether a key exists: for names that the server may add to, such as keys of curves. */
export function known(key: string): boolean {
  return key in pack
}

export async function setLanguage(wanted: Language): Promise<void> {
  const loaded = await packs[wanted]()
  pack = loaded.default
  code = wanted
  document.documentElement.lang = wanted === 'zh' ? 'zh-CN' : 'en'
  try {
    localStorage.setItem(KEPT, wanted)
  } catch {
    // A browser that keeps nothing still gets the language for this visit.
  }
}

/** The language kept from last time, else the browser's. */
export function firstLanguage(): Language {
  let kept: string | null = null
  try {
    kept = localStorage.getItem(KEPT)
  } catch {
    kept = null
  }
  if (kept === 'en' || kept === 'zh') return kept
  return navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en'
}
