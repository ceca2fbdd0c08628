#!/bin/sh
# Makes calibration and test text from Debian packages: build/text/{calibration,test}/KIND-NAME.txt
#
#     scripts/prepare_text.sh [FOLDER, default build/text]
#
# Needs only apt-get, dpkg and perl-base (all essential in Debian 12) and package lists (apt-get
# update). Packages are unpacked into a scratch folder, nothing is installed. No document is in both
# sets. If the folder is complete already, nothing is done.
set -eu

out=${1:-build/text}
packages="anarchism debian-reference-en python3.11-doc jargon-text libpython3.11-stdlib
          libpython3.11-minimal"
if [ -e "$out/.complete" ]; then
  echo "$out is complete already"
  exit 0
fi
rm -rf "$out"
mkdir -p "$out/calibration" "$out/test" "$out/unpack"
work=$(cd "$out/unpack" && pwd)

# shellcheck disable=SC2086  # the list is meant to be split
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download $packages)
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
  strip_html "$work/usr/share/doc/$4" > "$out/$1/$2-$3.txt"
}

# source_code SET MODULE...: modules of the standard library, each one text.
source_code() {
  set_name=$1
  shift
  for module in "$@"; do
    cp "$work/usr/lib/python3.11/$module.py" "$out/$set_name/code-$module.txt"
  done
}

anarchism=anarchism/html
python=python3.11/html
reference=../debian-reference

zcat "$work/usr/share/doc/jargon-text/jargon.txt.gz" | LC_ALL=C tr -cd '\11\12\40-\176' |
  tail -c +200000 | head -c 300000 > "$out/calibration/prose-jargon.txt"
for section in C1 H2 I5; do
  page calibration prose "anarchism-$section" "$anarchism/sec$section.html"
done
for chapter in 02 09; do
  page calibration technical "debian-reference-$chapter" "$reference/ch$chapter.en.html"
done
page calibration technical python-multiprocessing "$python/library/multiprocessing.html"
page calibration technical python-sqlite3 "$python/library/sqlite3.html"
source_code calibration _pydecimal argparse difflib mailbox

for section in G2 J3; do
  page test prose "anarchism-$section" "$anarchism/sec$section.html"
done
for module in inspect traceback; do
  page test technical "python-$module" "$python/library/$module.html"
done
source_code test subprocess tarfile

rm -rf "$work"
touch "$out/.complete"
wc -c "$out"/calibration/*.txt "$out"/test/*.txt
