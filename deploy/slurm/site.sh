# shellcheck shell=bash disable=SC2034  # DENOIZARR is used where this is sourced
# What is the site's own: how denoizarr is started on a node. Sourced by the scripts beside it, which are to be
# submitted from their folder, or with DENOIZARR_SITE=/path/of/site.sh. Variables that are set already stay.

# A virtual environment on a disk that all nodes see; empty where denoizarr is on the path already.
: "${DENOIZARR_ENV=$HOME/denoizarr-env}"
# Instead of it, a container: the scripts then start "apptainer exec --nv IMAGE denoizarr".
: "${DENOIZARR_IMAGE=}"

if [ -n "$DENOIZARR_IMAGE" ]; then
  DENOIZARR=(apptainer exec --nv "$DENOIZARR_IMAGE" denoizarr)
else
  # module load python cuda      # what the environment was made with, where the site has modules
  if [ -n "$DENOIZARR_ENV" ]; then
    # shellcheck disable=SC1091
    . "$DENOIZARR_ENV/bin/activate"
  fi
  DENOIZARR=(denoizarr)
fi
