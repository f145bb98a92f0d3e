"""What the programs' command lines have in common."""

import argparse


def boolean(text):
  """True or False from a flag's text (the released scripts write --bn_no_scale True)."""
  if text.lower() in ('true', '1', 'yes'):
    return True
  if text.lower() in ('false', '0', 'no'):
    return False
  raise argparse.ArgumentTypeError("'%s' is neither True nor False" % text)


def automatic(text):
  """True, False or 'auto' from a flag's text."""
  return 'auto' if text.lower() == 'auto' else boolean(text)


class Parser(argparse.ArgumentParser):
  """A parser whose errors are the one sentence, without the whole usage above it."""

  def error(self, message):
    self.exit(2, '%s: %s (see --help)\n' % (self.prog, message))


def add(section, name, type_, default, text, **keywords):
  """Adds the flag --name to a parser or a section of it; its help shows the type."""
  section.add_argument(
    '--' + name, type=type_, default=default, metavar=getattr(type_, '__name__', '').upper(), help=text, **keywords
  )
