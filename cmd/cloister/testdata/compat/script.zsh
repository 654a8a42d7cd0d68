emulate -R zsh
setopt extendedglob nullglob
a=(one two "three four" $((3*3)))
print -l -- $#a $a[2,3] ${(U)a} ${(j:,:)a} ${(o)a} ${a:#t*}
typeset -A m; m=(k v x y); print -r -- ${(ok)m} ${m[k]} $#m
f() { local n=$1; if (( n < 2 )) { REPLY=1; return }; f $((n-1)); (( REPLY *= n )) }; f 15; print $REPLY
print -- ${${:-/usr/lib/x.tar.gz}:t:r} ${(l:8::0:)${:-42}} ${(q)${:-a b}} ${(s:,:)${:-a,b,c}}
print $(( 7.0/2 )) $(( 2**40 )) $(( 16#ff )) $(( [#2] 10 ))
for i in {1..3}{a,b}; print -n "$i "; print
[[ abc123 = (#b)([a-z]##)([0-9]##) ]] && print $match[1] $match[2]
print made >made; print more >>made; while read -r l; do print "<$l>"; done <made
zmodload zsh/files && mkdir -p d/e && : >d/e/f && print d/**/*(.) d/**/*(/) && rm -r d
zmodload zsh/stat && zstat +size made
zmodload zsh/datetime && strftime %Y 86400
for ((i = 0; i < 20000; i++)) (( s += i * i )); print $s
while read -r x y; do print "$x|$y"; done
{ false } always { print always }
cd /nothere; print "status $?"
trap 'print bye' EXIT
print -u2 err; exit 9
