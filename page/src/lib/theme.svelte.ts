// Light, dark, or as the system says. `theme.dark` is what is shown now.

export type Theme = 'system' | 'light' | 'dark'
const KEPT = 'tunewright.theme'
const system = window.matchMedia('(prefers-color-scheme: dark)')

function kept(): Theme {
  try {
    const value = localStorage.getItem(KEPT)
    return value === 'light' || value === 'dark' ? value : 'system'
  } catch {
    return 'system'
  }
}

let choice = $state<Theme>(kept())
let systemDark = $state(system.matches)
system.addEventListener('change', (event) => (systemDark = event.matches))

function show(): void {
  const root = document.documentElement
  if (choice === 'system') root.removeAttribute('data-theme')
  else root.setAttribute('data-theme', choice)
}
show()

export const theme = {
  get choice(): Theme {
    return choice
  },
  get dark(): boolean {
    return choice === 'dark' || (choice === 'system' && systemDark)
  },
  set(next: Theme): void {
    choice = next
    show()
    try {
      localStorage.setItem(KEPT, next)
    } catch {
      // Not kept, but shown.
    }
  },
}

/** The value of a CSS variable now, for what is drawn on a canvas. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim()
}
