// The search of the site is a worker's, and pages that are opened from a folder may start none: there a hidden frame does its work.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready;

    constructor(url) {
      super();
      Object.assign(this.#frame, { hidden: true, srcdoc: "<!doctype html>" });
      this.#ready = new Promise((resolve) => {
        this.#frame.onload = () => {
          const { contentDocument: inner, contentWindow: worker } = this.#frame;
          worker.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          inner.head.append(Object.assign(inner.createElement("script"), { src: url, onload: () => resolve(worker) }));
        };
      });
      document.body.append(this.#frame);
    }

    async postMessage(data) {
      const worker = await this.#ready;
      worker.dispatchEvent(new worker.MessageEvent("message", { data }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
