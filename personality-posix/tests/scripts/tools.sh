# Run on a host and on a node: both must say the same. $1: an empty folder.
w=$1; cd "$w" || exit 1
echo "== files"; echo one > f1; echo two >> f1; cat f1; cp f1 f2; mv f2 f3; ln f1 f4; ln -s f1 l1; readlink l1; cat l1; ls; wc f1 f3; test -L l1 && echo link; test -f f1 && echo file
stat -c '%a %h %s %F' f1; chmod 600 f1; stat -c '%a' f1; touch -d '2020-01-02 03:04:05' f1; stat -c '%Y' f1; rm f4; stat -c %h f1
echo "== dirs"; mkdir -p d/e/f; touch d/e/f/x d/y; find d | sort; rmdir d/e 2>&1; rm -r d; ls -d d 2>&1; mkdir dd; cd dd; pwd; cd ..; rmdir dd
echo "== redirections"; { echo out; echo err >&2; } > o 2> e; cat o e; echo a b c | while read x y z; do echo $z $y $x; done; cat <<X
here $((1+2))
X
exec 5> five; echo to5 >&5; exec 5>&-; cat five; echo trunc > five; cat five; : > five; wc -c five
echo "== pipes"; seq 1 1000 | grep 7 | sort -rn | head -5; yes | head -3; seq 1 20000 | tail -1; dd if=/dev/zero bs=1k count=100 2>/dev/null | wc -c
echo "== globs"; touch g1.c g2.c g3.h; echo *.c; echo g?.h; echo nomatch*; rm g*
echo "== vars"; a=5; b=$((a*7)); echo $b ${a:-x} ${zz:-default} ${#b}; set -- p q r; echo $# $2 "$@"; f() { echo f:$1; return 3; }; f arg; echo $?
echo "== subst"; echo $(echo $(echo nested)); x=`date -d @0 -u +%Y`; echo $x; expr 3 + 4; printf '%05d|%s|%x\n' 42 str 255
echo "== signals"; (trap 'echo got TERM; exit 4' TERM; kill -TERM $$_ 2>/dev/null; exit 5); echo $?; sh -c 'trap "echo t1" USR1; kill -USR1 $$; echo done'; sh -c 'kill -9 $$'; echo $?; sleep 5 & p=$!; kill $p; wait $p; echo $?; sh -c 'trap "" TERM; kill -TERM $$; echo survived'
(sleep 0.1; exit 9) & wait $!; echo $?; timeout 1 sleep 10; echo $?; yes | head -1; 
echo "== text"; printf 'b 2\na 1\nc 3\n' > t; sort t; sort -k2 -rn t; cut -d' ' -f2 t; awk '{s+=$2} END {print s}' t; sed 's/a/A/;2d' t; tr a-z A-Z < t; uniq -c t | head -1; tac t; rev t; nl t; paste t t; od -c t | head -2; md5sum t; base64 t; fold -w 2 t | head -2; diff t t && echo same; printf 'x\ny\n' > u; diff t u; cmp t u; grep -c 1 t; xargs echo < t; tee v < t > /dev/null; cat v; head -c 3 t; tail -n 1 t
echo "== archives"; mkdir ar; cp t u v ar; tar czf a.tgz ar; tar tzf a.tgz | sort; mkdir un; tar xzf a.tgz -C un; diff -r ar un/ar && echo same; gzip -k t; gunzip -c t.gz | cmp - t && echo same; bzip2 -k u; bunzip2 -c u.bz2; xz -dc /dev/null 2>&1 | head -1; cpio -o < /dev/null 2>/dev/null | wc -c; rm -r ar un
echo "== ids"; id -u; id -g; umask; umask 077; touch um; stat -c %a um; umask 022; chown 1000:1000 um; stat -c '%u %g' um
echo "== misc"; test -t 0; echo $?; env | grep ^FOO; FOO=bar env | grep ^FOO; cd /; basename /a/b/c; dirname /a/b/c; cd "$w"; mkfifo ff; (echo through > ff) & cat ff; wait; du -k t | cut -f1; ls -l t | cut -c1-10; mktemp -d "$w/made.XXXXXX" | cut -c1-5; realpath l1; nohup echo nh 2>/dev/null; seq 3 | xargs -n1 echo i; find . -name 't*' | sort; which ls >/dev/null && echo found; sleep 0.05; time -f '' true; cat /dev/null; echo z > /dev/null; head -c 4 /dev/zero | od -An -tx1; truncate -s 10 tr; stat -c %s tr; sync; echo end
