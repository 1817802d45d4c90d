"""How the page looks and what its few lines of script do. Fonts come with Gradio; nothing is loaded from elsewhere."""

from __future__ import annotations

from typing import Any

CSS = """
.gradio-container { max-width: 1320px !important; margin: 0 auto !important; padding: 0 24px !important; }
.gradio-container main { padding: 16px 0 8px !important; }
.gradio-container .html-container { padding: 0 !important; }
footer { display: none !important; }
.vlm-title h1 { font-size: 22px; font-weight: 700; margin: 0; letter-spacing: -0.01em; }
.vlm-title p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 14px; }
.vlm-model { font-size: 12px; font-weight: 700; color: var(--primary-600); background: var(--primary-50);
  border-radius: 99px; padding: 2px 10px; margin-left: 10px; vertical-align: 3px; letter-spacing: 0; }
.dark .vlm-model { color: var(--primary-200); background: var(--primary-900); }
#head { align-items: center; }
#main { gap: 18px; }
#talk, #see { gap: 10px; }
#chat, #box, #settings { border-radius: 14px; overflow: hidden; }
#chat .icon-button-wrapper { display: none; }
#chat .message { font-size: 15px; line-height: 1.45; }
#chat .message-content, #chat .message span { white-space: pre-wrap; }
#chat .placeholder { max-width: 30em; }
#chat .placeholder * { color: var(--body-text-color-subdued); line-height: 1.6; }
#box .submit-button { background: var(--primary-600); color: #fff; }
#box .stop-button { background: var(--neutral-700); color: #fff; }
#examples { gap: 8px; flex-wrap: wrap; }
#examples button { flex: 0 0 auto; min-width: 0; border-radius: 99px; font-weight: 400; padding: 4px 14px; }
#new { flex: 0 0 auto; min-width: 0; border-radius: 99px; padding: 5px 14px; font-weight: 400; }
#settings .block.padded { padding: 8px 12px; }
#settings input, #settings label > span { font-size: 13.5px; }

.vlm-player { margin: 0; border-radius: 14px; overflow: hidden; background: #0b1020; }
.vlm-player video, .vlm-player img { display: block; width: 100%; height: 372px; object-fit: contain; }
.vlm-audio { padding: 159px 18px; background: var(--background-fill-secondary); }
.vlm-player audio { display: block; width: 100%; }
.vlm-unplayable { display: none; margin: 0; padding: 8px 14px; font-size: 13px; color: #e2e8f0; }
.vlm-broken .vlm-unplayable { display: block; }
.vlm-empty { display: flex; align-items: center; justify-content: center; height: 372px; text-align: center;
  font-size: 14px; color: var(--body-text-color-subdued); border-radius: 14px;
  border: 1.5px dashed var(--border-color-primary); }
.vlm-low { height: 158px; }

.vlm-strip { border: 1px solid var(--border-color-primary); border-radius: 14px; padding: 10px 14px 9px;
  font-variant-numeric: tabular-nums; background: var(--block-background-fill); --mark: #ea7317; }
.vlm-times { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; min-height: 24px; font-size: 13px; }
.vlm-times b { font-weight: 700; }
.vlm-times em { margin-left: auto; font-style: normal; color: var(--body-text-color-subdued); }
.vlm-chip { border: 0; cursor: pointer; border-radius: 99px; padding: 2px 11px; background: var(--mark); color: #fff;
  font-size: 12.5px; font-weight: 700; }
.vlm-bar { position: relative; height: 10px; margin: 5px 0 9px; border-radius: 5px; overflow: hidden; cursor: pointer;
  background: var(--background-fill-secondary); }
.vlm-bar > * { position: absolute; top: 0; height: 100%; min-height: 0; display: block; padding: 0; border: 0; }
.vlm-window { background: var(--neutral-200); }
.dark .vlm-window { background: var(--neutral-700); }
.vlm-mark { background: var(--mark); min-width: 4px; border-radius: 5px; cursor: pointer; }
.vlm-playhead { left: 0; width: 2px; background: var(--body-text-color); }
.vlm-frames { display: flex; gap: 7px; align-items: flex-start; }
.vlm-frame { flex: 1 1 0; min-width: 0; max-width: 150px; padding: 0; border: 0; background: none; cursor: pointer;
  text-align: center; }
.vlm-frame img { display: block; width: 100%; height: auto; max-height: 84px; object-fit: cover; border-radius: 7px;
  outline: 1px solid var(--border-color-primary); outline-offset: -1px; }
.vlm-frame span { font-size: 12px; font-weight: 400; color: var(--body-text-color-subdued); }
.vlm-frame:hover img { outline: 2px solid var(--primary-500); }
.vlm-marked img { outline: 3px solid var(--mark) !important; outline-offset: -3px; }
.vlm-marked span { color: var(--mark); font-weight: 700; }
.vlm-usage { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 0; padding: 0; list-style: none;
  font-size: 12px; color: var(--body-text-color-subdued); }
.vlm-usage b { font-weight: 700; color: var(--body-text-color); }
.vlm-note { margin: 4px 0 0; font-size: 12.5px; color: var(--mark); }
"""

# Clicks and media events are caught at the document, so the HTML that Gradio swaps in needs no handlers of its own.
SCRIPT = """
<script>
(() => {
  const player = () => document.querySelector('.vlm-player video, .vlm-player audio');
  const seek = (seconds) => {
    const media = player();
    if (media && Number.isFinite(seconds)) media.currentTime = Math.max(0, seconds);
  };
  document.addEventListener('click', (event) => {
    if (!(event.target instanceof Element)) return;
    const target = event.target.closest('[data-seek]');
    if (target) return seek(Number(target.dataset.seek));
    const bar = event.target.closest('.vlm-bar');
    if (!bar) return;
    const box = bar.getBoundingClientRect();
    seek(Number(bar.dataset.length) * (event.clientX - box.left) / box.width);
  });
  const follow = () => {
    const media = player(), bar = document.querySelector('.vlm-bar');
    const head = bar && bar.querySelector('.vlm-playhead');
    if (media && head) head.style.left = 100 * Math.min(1, media.currentTime / Number(bar.dataset.length)) + '%';
  };
  for (const name of ['timeupdate', 'seeked']) document.addEventListener(name, follow, true);
  document.addEventListener('error', (event) => {
    if (event.target instanceof HTMLMediaElement) event.target.closest('.vlm-player')?.classList.add('vlm-broken');
  }, true);
})();
</script>
"""


def theme() -> Any:
    """Quiet colours; the answer's orange is the only loud one. The font is served by Gradio itself.

    Its SemiBold file is left out, because Chromium shows another font in its place; 600 then falls on Bold.
    """
    import gradio as gr

    fonts = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"]
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", spacing_size="md", font=fonts
    ).set(
        body_background_fill="#ffffff",
        block_border_width="1px",
        block_shadow="none",
        button_secondary_background_fill="*neutral_100",
        button_secondary_border_color="transparent",
    )
