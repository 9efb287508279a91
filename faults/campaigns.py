"""All campaigns by name, in the order they run: the quick ones first."""

from __future__ import annotations

from faults import (
    checkpoints,
    circumstances,
    cluster,
    command_lines,
    contents,
    grace,
    kills,
    order,
    own_texts,
    parts,
    prompts,
    reads,
    remote,
    resume_reads,
    saving,
    shards,
    stalls,
    user_files,
    videos,
    week,
)
from faults.campaign import Campaign
from faults.planted import planted

CAMPAIGNS: dict[str, Campaign] = {
    campaign.name: campaign
    for campaign in (
        shards.STRICT,
        shards.SKIPPING,
        parts.PARTS,
        checkpoints.MUTATED,
        checkpoints.HOSTILE,
        prompts.HOSTILE,
        command_lines.BAD,
        own_texts.CONTENTS,
        videos.BROKEN,
        saving.SAVING,
        user_files.USER_FILES,
        order.CHANGES,
        contents.CHECKPOINTS,
        circumstances.CIRCUMSTANCES,
        kills.KILLS,
        kills.KILLS_OF_ADAPTERS,
        kills.STOPS,
        reads.READS,
        remote.REMOTE,
        resume_reads.RESUME_READS,
        stalls.STALLS,
        grace.GRACE,
        cluster.CLUSTER,
        week.WEEK,
    )
}
CAMPAIGNS["planted"] = planted({**CAMPAIGNS, "week": week.WEEK_OF_A_TEST})
