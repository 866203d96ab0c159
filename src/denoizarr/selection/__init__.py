"""Where to look: statistics, filter maps, masks, regions of interest and the patch index, all lazy.

A reader's way through: ``cells`` (the grid) -> ``scores`` (of one block) -> ``sweeps`` (how blocks are read)
-> ``filter_maps`` (lazy) and ``survey`` (resumable, kept by ``region_arrays``) -> ``filters``, ``thresholds``
-> ``index_settings`` (checked) -> ``image_scores`` (all that is measured of an image) -> ``index_builder`` ->
``patch_index``. Masks: ``mask_alignment`` -> ``masks``. Regions of interest: ``roi_settings`` and
``roi_criteria`` -> ``roi_level`` (the coarse level) -> ``roi_passes`` (over it) -> ``roi_work`` (resumable)
-> ``roi_windows`` -> ``regions_of_interest`` (what users see). ``on_disk`` and ``looks`` serve the command
line.
"""
