#!/bin/sh
# Runs the compiler that is named behind it, and fails where ptxas remarks on a loss: products of warpgroups that it put one after
# the other, or registers that it does not move between them. It calls that information, which no option of nvcc makes an error.
{ said=$("$@" 2>&1 1>&3); code=$?; } 3>&1
[ -z "$said" ] || printf '%s\n' "$said" >&2
case $said in
*'Potential Performance Loss'*) ;;
*) exit $code ;;
esac
echo 'nvcc.sh: a loss that ptxas remarks on fails the build' >&2
# Else make would take it for up to date.
while [ $# -gt 1 ]; do
  [ "$1" != -o ] || rm -f "$2"
  shift
done
exit 1
