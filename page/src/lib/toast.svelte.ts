// Short notices at the foot of the page: say(t('part.copied')).

export type Notice = { id: number; text: string; level: 'good' | 'bad' | 'plain' }

let shown = $state<Notice[]>([])
let next = 1

export const notices = {
  get list(): Notice[] {
    return shown
  },
}

export function say(text: string, level: Notice['level'] = 'plain'): void {
  const id = next
  next += 1
  shown.push({ id, text, level })
  setTimeout(() => dismiss(id), level === 'bad' ? 10_000 : 4_000)
}

export function dismiss(id: number): void {
  shown = shown.filter((one) => one.id !== id)
}
