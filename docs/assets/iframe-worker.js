// Browsers start no worker from a file on disk, and the search of the site runs in one. Where a page
// is opened as a file, a hidden frame of the same page does its work. Only what the search needs.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.appendChild(frame)
      const worker = frame.contentWindow
      let listeners = []
      worker.addEventListener = (type, listener) => {
        if (type === "message") listeners.push(listener)
      }
      worker.postMessage = data => {
        this.dispatchEvent(new MessageEvent("message", { data }))
      }
      worker.importScripts = (...urls) => Promise.all(urls.map(load))
      const deliver = data => {
        for (const listener of listeners) listener(new MessageEvent("message", { data }))
      }
      const load = source =>
        new Promise((resolve, reject) => {
          const script = frame.contentDocument.createElement("script")
          script.src = source
          script.onload = resolve
          script.onerror = reject
          frame.contentDocument.head.appendChild(script)
        })
      this.postMessage = data => waiting.push(data)
      load(url).then(() => {
        this.postMessage = data => setTimeout(() => deliver(data))
        waiting.forEach(this.postMessage)
      })
    }
    terminate() {}
  }
  window.Worker = window.IFrameWorker
}
