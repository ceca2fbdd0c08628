#!/bin/sh
# Makes texts from Debian packages: build/text/{calibration,development,test}/KIND-NAME.txt
#
#     scripts/prepare_text.sh [FOLDER, default build/text]
#
# Needs only apt-get, dpkg and perl-base (all essential in Debian 12); without package lists also
# root, to get them. Packages are unpacked into a scratch folder, nothing is installed. No document
# is in two sets: choices are made on `development`, stated losses are of `test`. If the folder is
# complete already, nothing is done.
set -eu

out=${1:-build/text}
packages="anarchism debian-history debian-reference-en developers-reference fortunes git-doc
          jargon-text libpython3.11-minimal libpython3.11-stdlib perl-modules-5.36 python3.11-doc"
# Raise this when the choice of documents changes: an older folder is then made again.
edition=3
if [ "$(cat "$out/.complete" 2> /dev/null)" = "$edition" ]; then
  echo "$out is complete already"
  exit 0
fi
rm -rf "$out"
mkdir -p "$out/calibration" "$out/development" "$out/test" "$out/unpack"
work=$(cd "$out/unpack" && pwd)

# shellcheck disable=SC2086  # the list is meant to be split
fetch() {
  (cd "$work" && apt-get -q -o APT::Sandbox::User=root download $packages)
}
fetch || { apt-get -q update && fetch; }
for package in "$work"/*.deb; do
  dpkg -x "$package" "$work"
done

# strip_html FILE: the text of an HTML page on standard output.
strip_html() {
  perl -CSD -0777 -pe '
    s/.*<body[^>]*>//is; s/<!--.*?-->//gs; s/<(script|style|nav|head)\b.*?<\/\1>//gis;
    s/<div class="(related|sphinxsidebar|navheader|navfooter)".*?<\/div>//gis;
    s/<[^>]+>//g; s/&#x([0-9a-f]+);/chr hex $1/gei; s/&#(\d+);/chr $1/ge;
    s/&nbsp;/ /g; s/&quot;/"/g; s/&lt;/</g; s/&gt;/>/g; s/&[rl]squo;/\x27/g; s/&[rl]dquo;/"/g;
    s/&para;//g; s/\x{b6}//g; s/&[mn]dash;/-/g; s/&amp;/&/g;
    s/\r//g; s/[ \t\x{a0}]+/ /g; s/ ?\n ?/\n/g; s/\n{3,}/\n\n/g; s/^\s+//' "$1"
}

# page SET KIND NAME FILE: one HTML page becomes one text.
page() {
  strip_html "$work/usr/share/$4" > "$out/$1/$2-$3.txt"
}

# packed SET KIND NAME FILE: one packed text, without overstrikes and other control characters.
packed() {
  zcat "$work/usr/share/$4" | LC_ALL=C tr -cd '\11\12\40-\176' > "$out/$1/$2-$3.txt"
}

# fortunes SET NAME...: sayings, without the lines between them.
fortunes() {
  set_name=$1
  shift
  for name in "$@"; do
    LC_ALL=C tr -cd '\11\12\40-\176' < "$work/usr/share/games/fortunes/$name" | sed 's/^%$//' \
      > "$out/$set_name/prose-fortunes-$name.txt"
  done
}

# python_code SET MODULE...: modules of Python's standard library, each one text.
python_code() {
  set_name=$1
  shift
  for module in "$@"; do
    cp "$work/usr/lib/python3.11/$module.py" "$out/$set_name/code-$module.txt"
  done
}

# perl_code SET MODULE...: modules of Perl's library, each one text.
perl_code() {
  set_name=$1
  shift
  for module in "$@"; do
    cp "$work"/usr/share/perl/5.36.*/"$module.pm" \
      "$out/$set_name/code-perl-$(echo "$module" | tr / -).txt"
  done
}

anarchism=doc/anarchism/html
git=doc/git-doc
python=doc/python3.11/html
reference=debian-reference

for section in A2 A5 C1 H2 I5; do
  page calibration prose "anarchism-$section" "$anarchism/sec$section.html"
done
packed calibration prose jargon doc/jargon-text/jargon.txt.gz
tail -c +200000 "$out/calibration/prose-jargon.txt" | head -c 300000 > "$work/part"
mv "$work/part" "$out/calibration/prose-jargon.txt"
fortunes calibration people songs-poems
for chapter in 02 09; do
  page calibration technical "debian-reference-$chapter" "$reference/ch$chapter.en.html"
done
packed calibration technical developers-reference developers-reference/developers-reference.txt.gz
for name in fast-import user-manual; do
  page calibration technical "git-$name" "$git/$(echo "git-$name" | sed 's/git-user/user/').html"
done
for name in howto/logging-cookbook library/multiprocessing library/sqlite3; do
  page calibration technical "python-${name#*/}" "$python/$name.html"
done
python_code calibration _pydecimal argparse difflib ipaddress mailbox typing
perl_code calibration CPAN/Distribution File/Temp

# Thirty-six documents of three kinds, each of more than 9,000 tokens of SmolLM2.
for section in A3 B1 B2 C9 D5 F8 G1 G3 H1 H3 I3 J5; do
  page development prose "anarchism-$section" "$anarchism/sec$section.html"
done
for chapter in 10 12; do
  page development technical "debian-reference-$chapter" "$reference/ch$chapter.en.html"
done
for name in git-config git-log git-svn gitcore-tutorial; do
  page development technical "$name" "$git/$name.html"
done
for name in howto/enum library/ctypes library/datetime library/decimal library/ssl \
  reference/datamodel; do
  page development technical "python-${name#*/}" "$python/$name.html"
done
python_code development dataclasses datetime doctest enum pdb pickletools threading zipfile
perl_code development B/Deparse Getopt/Long JSON/PP Math/BigInt

# Nine documents of three kinds, each of more than 9,000 tokens of SmolLM2.
for section in G2 J3; do
  page test prose "anarchism-$section" "$anarchism/sec$section.html"
done
packed test prose debian-history doc/debian-history/docs/project-history.en.txt.gz
page test technical debian-reference-01 "$reference/ch01.en.html"
page test technical git-rebase "$git/git-rebase.html"
page test technical python-inspect "$python/library/inspect.html"
python_code test subprocess tarfile
perl_code test HTTP/Tiny

rm -rf "$work"
echo "$edition" > "$out/.complete"
wc -c "$out"/*/*.txt
