"""Opens a page in headless Chromium, narrow and wide: it must not scroll sideways, and show all images. By hand:

  python tests/browser.py report.html

For the report of serving/report.py; the tests look at what is in it, but not every machine has a browser.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
WIDTHS = 400, 1400  # pixels
LOOK = (
  '<script>document.title = [document.documentElement.scrollWidth, innerWidth, [...document.images].filter('
  'i => !i.complete || !i.naturalWidth).length].join(" ")</script></body>'
)
# A window of headless Chromium is at least 500 wide, so a narrow page stands in a frame.
FRAME = (
  '<body style="margin:0"><iframe src="page.html" width="{}" height="800" style="border:0" '
  'onload="document.title=this.contentDocument.title"></iframe></body>'
)


def look(browser, text, width):
  """Shows the HTML in a frame of so many pixels; returns (pixels that it takes, images that are not shown)."""
  with tempfile.TemporaryDirectory() as folder:
    for name, content in (('page', text.replace('</body>', LOOK)), ('frame', FRAME.format(width))):
      with open(os.path.join(folder, f'{name}.html'), 'w', encoding='utf-8') as f:
        f.write(content)
    command = [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files']
    command += [f'--user-data-dir={folder}/profile', '--window-size=1500,900', '--virtual-time-budget=10000']
    command += ['--dump-dom', f'file://{folder}/frame.html']
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
  scrolled, inner, missing = map(int, re.search(r'<title>(\d+) (\d+) (\d+)</title>', shown).groups())
  assert inner == width
  return scrolled, missing


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('page', help='an HTML file that needs nothing beside it')
  page = parser.parse_args().page
  browser = next(filter(None, map(shutil.which, NAMES)), None)
  if not browser:
    parser.error(f'there is none of {", ".join(NAMES)}: install Chromium')
  try:
    with open(page, encoding='utf-8') as f:
      text = f.read()
  except (OSError, UnicodeError) as e:
    parser.error(f"'{page}' cannot be read ({getattr(e, 'strerror', None) or e})")
  wrong = 0
  for width in WIDTHS:
    scrolled, missing = look(browser, text, width)
    print(f'{width} pixels: {scrolled} wide, {missing} images missing')
    wrong += scrolled > width or missing > 0
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
