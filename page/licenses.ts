// Writes licenses.txt beside the page: every library whose code is in the bundle, with its licence.
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Plugin } from 'vite'

function packageOf(id: string): string | null {
  const path = id.split('?')[0] ?? ''
  const at = path.lastIndexOf('/node_modules/')
  if (at < 0) return null
  let folder = dirname(path)
  while (folder.length > at + '/node_modules/'.length) {
    const file = join(folder, 'package.json')
    if (existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).version) return folder
    folder = dirname(folder)
  }
  return null
}

function entry(folder: string): string {
  const about = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const files = readdirSync(folder).filter((name) => /^(licen[cs]e|notice)/i.test(name)).sort()
  const texts = files.map((name) => readFileSync(join(folder, name), 'utf8').trim())
  if (texts.length === 0) throw new Error(`${about.name} has no licence file: look into ${folder}`)
  return `${about.name} ${about.version} (${about.license})\n\n${texts.join('\n\n')}\n`
}

export function licenses(): Plugin {
  return {
    name: 'licenses',
    apply: 'build',
    generateBundle(_options, bundle) {
      const folders = new Set<string>()
      for (const chunk of Object.values(bundle)) {
        if (chunk.type !== 'chunk') continue
        for (const id of Object.keys(chunk.modules)) {
          const folder = packageOf(id.replaceAll('\\', '/').replace(/^\0/, ''))
          if (folder) folders.add(folder)
        }
      }
      const line = '-'.repeat(72)
      const source = [...folders].sort().map(entry).join(`\n${line}\n\n`)
      this.emitFile({ type: 'asset', fileName: 'licenses.txt', source })
    },
  }
}
